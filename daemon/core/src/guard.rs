//! What a request over TCP must look like before any route sees it.
//!
//! Owns: the rules against web pages that reach for this machine. Must not know: HTTP libraries, routes.
//! Driven by: `api` (daemon), for every request that does not come over the unix socket.
//!
//! A page in a browser can make it send requests to loopback. A page whose own name was pointed here (DNS
//! rebinding) sends its name as Host. A page of another site sends its Origin with all that could change something,
//! and cannot set a JSON content type or a header of ours without asking first, which nobody answers.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// Header that a request which changes something must have; its value does not matter.
pub const HEADER: &str = "x-gossamer";

/// What is judged of a request. A header that is no text is given as an empty one.
#[derive(Clone, Debug, Default)]
pub struct Head<'a> {
    /// Its method.
    pub method: &'a str,
    /// Host and port of a target that is a whole URI; it goes before Host then (RFC 9112 section 3.2.2).
    pub authority: Option<&'a str>,
    /// Every Host.
    pub hosts: Vec<&'a str>,
    /// Every Origin.
    pub origins: Vec<&'a str>,
    /// Its Content-Type.
    pub content_type: Option<&'a str>,
    /// Whether it has [`HEADER`].
    pub has_header: bool,
}

/// Why a request is refused. The caller's fault; no route saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// It was meant for somebody else.
    #[error(
        "the request names another host; use localhost, a loopback address, or a name that is configured"
    )]
    Host,
    /// A page of another site sent it.
    #[error("pages of other sites may not use this API")]
    Origin,
    /// Nothing here is asked for in that way, preflights of browsers least of all.
    #[error("the method is none of GET, HEAD, POST, PUT, PATCH and DELETE")]
    Method,
    /// A form could have sent it.
    #[error("send the header content-type: application/json")]
    ContentType,
    /// A page could have sent it.
    #[error("send the header {HEADER}: 1")]
    Header,
}

impl Refused {
    /// Returns the HTTP status that says so.
    pub const fn status(self) -> u16 {
        match self {
            Self::Host => 421,
            Self::Origin | Self::Method | Self::Header => 403,
            Self::ContentType => 415,
        }
    }

    /// Returns a word for counters.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Origin => "origin",
            Self::Method => "method",
            Self::ContentType => "content_type",
            Self::Header => "header",
        }
    }
}

/// The names this machine answers to over TCP: those of loopback, and some of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    names: BTreeSet<String>,
}

impl Guard {
    /// Makes a guard that lets these names through as well, given without a port.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self { names: names.into_iter().map(|name| name.to_ascii_lowercase()).collect() }
    }

    /// Judges a request.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn check(&self, head: &Head<'_>) -> Result<(), Refused> {
        let [host] = head.hosts[..] else { return Err(Refused::Host) };
        let named = head.authority.unwrap_or(host);
        if !self.knows(host) || !self.knows(named) {
            return Err(Refused::Host);
        }
        let is_same_site = |origin: &&str| site(origin).is_some_and(|site| site.eq_ignore_ascii_case(named));
        if head.origins.len() > 1 || !head.origins.iter().all(is_same_site) {
            return Err(Refused::Origin);
        }
        match head.method {
            "GET" | "HEAD" => Ok(()),
            "POST" | "PUT" | "PATCH" | "DELETE" if !head.content_type.is_some_and(is_json) => {
                Err(Refused::ContentType)
            }
            "POST" | "PUT" | "PATCH" | "DELETE" if !head.has_header => Err(Refused::Header),
            "POST" | "PUT" | "PATCH" | "DELETE" => Ok(()),
            _ => Err(Refused::Method),
        }
    }

    /// Whatever the port: a forwarded one differs from the one that is listened on.
    fn knows(&self, authority: &str) -> bool {
        let Some(host) = host_of(authority) else { return false };
        let host = host.to_ascii_lowercase();
        let is_loopback = host == "localhost"
            || host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
            || bracketed(&host).is_some_and(|ip| ip.is_loopback());
        is_loopback || self.names.contains(&host)
    }
}

/// Returns the host of `host[:port]`, brackets and all.
fn host_of(authority: &str) -> Option<&str> {
    let end = match authority.find(']') {
        Some(bracket) => bracket + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at_checked(end)?;
    let is_port = |text: &str| text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    (!host.is_empty() && (rest.is_empty() || is_port(rest))).then_some(host)
}

fn bracketed(host: &str) -> Option<Ipv6Addr> {
    host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

/// Returns host and port of an origin. `null`, and what is no web page, has none.
fn site(origin: &str) -> Option<&str> {
    origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))
}

/// What a form cannot send (HTML: `application/x-www-form-urlencoded`, `multipart/form-data`, `text/plain`).
fn is_json(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        Guard::new(["Mesh.example.net".to_owned(), "192.0.2.7".to_owned(), "[2001:db8::7]".to_owned()])
    }

    fn get(host: &str) -> Head<'_> {
        Head { method: "GET", hosts: vec![host], ..Head::default() }
    }

    fn post() -> Head<'static> {
        let content_type = Some("application/json");
        Head { method: "POST", content_type, has_header: true, ..get("localhost:4678") }
    }

    #[test]
    fn only_names_of_this_machine_are_answered() {
        let good = [
            "localhost",
            "LocalHost:4678",
            "127.0.0.1:4678",
            "127.240.0.53",
            "[::1]:9",
            "mesh.example.net:8443",
            "MESH.example.net",
            "192.0.2.7:4678",
            "[2001:db8::7]:4678",
        ];
        for host in good {
            assert_eq!(guard().check(&get(host)), Ok(()), "{host}");
        }
        let bad = [
            "",
            ":80",
            "evil.example",
            "evil.example:4678",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "127.1",
            "0.0.0.0:4678",
            "10.0.0.7",
            "[::]:4678",
            "[::1",
            "::1",
            "[::ffff:127.0.0.1]",
            "localhost:evil",
            "localhost:99999",
            "localhost:80:80",
            "localhost.",
            "user@localhost",
            "localhost@evil.example",
            "localhost evil.example",
            "localhost,evil.example",
            "mesh.example.net.evil.example",
        ];
        for host in bad {
            assert_eq!(guard().check(&get(host)), Err(Refused::Host), "{host}");
        }
        assert_eq!(Guard::default().check(&get("mesh.example.net")), Err(Refused::Host));
    }

    #[test]
    fn exactly_one_host_counts_and_a_whole_uri_must_name_a_good_one_too() {
        let with =
            |hosts: Vec<&'static str>, authority| Head { method: "GET", hosts, authority, ..Head::default() };
        assert_eq!(guard().check(&with(vec![], None)), Err(Refused::Host));
        assert_eq!(guard().check(&with(vec!["localhost", "localhost"], None)), Err(Refused::Host));
        assert_eq!(guard().check(&with(vec!["localhost"], Some("evil.example"))), Err(Refused::Host));
        assert_eq!(guard().check(&with(vec!["evil.example"], Some("localhost"))), Err(Refused::Host));
        assert_eq!(guard().check(&with(vec!["localhost"], Some("localhost:4678"))), Ok(()));
    }

    #[test]
    fn a_page_of_another_site_is_refused_whatever_it_asks_for() {
        for (origin, verdict) in [
            ("http://localhost:4678", Ok(())),
            ("https://LOCALHOST:4678", Ok(())),
            // Another program of this machine serves that page.
            ("http://localhost:3000", Err(Refused::Origin)),
            ("http://localhost", Err(Refused::Origin)),
            ("http://127.0.0.1:4678", Err(Refused::Origin)),
            ("http://evil.example", Err(Refused::Origin)),
            ("http://localhost:4678.evil.example", Err(Refused::Origin)),
            ("null", Err(Refused::Origin)),
            ("", Err(Refused::Origin)),
            ("file://", Err(Refused::Origin)),
            ("chrome-extension://localhost:4678", Err(Refused::Origin)),
            ("localhost:4678", Err(Refused::Origin)),
        ] {
            for head in [get("localhost:4678"), post()] {
                let head = Head { origins: vec![origin], ..head };
                assert_eq!(guard().check(&head), verdict, "{} of {origin}", head.method);
            }
        }
        let two = Head { origins: vec!["http://localhost:4678"; 2], ..post() };
        assert_eq!(guard().check(&two), Err(Refused::Origin));
    }

    #[test]
    fn what_changes_something_is_json_and_has_our_header() {
        for (content_type, verdict) in [
            (Some("application/json"), Ok(())),
            (Some("Application/JSON; charset=utf-8"), Ok(())),
            (Some("application/x-www-form-urlencoded"), Err(Refused::ContentType)),
            (Some("multipart/form-data; boundary=x"), Err(Refused::ContentType)),
            (Some("text/plain"), Err(Refused::ContentType)),
            (Some("text/plain; application/json"), Err(Refused::ContentType)),
            (Some("application/jsonp"), Err(Refused::ContentType)),
            (Some(""), Err(Refused::ContentType)),
            (None, Err(Refused::ContentType)),
        ] {
            for method in ["POST", "PUT", "PATCH", "DELETE"] {
                assert_eq!(
                    guard().check(&Head { method, content_type, ..post() }),
                    verdict,
                    "{content_type:?}"
                );
            }
        }
        assert_eq!(guard().check(&Head { has_header: false, ..post() }), Err(Refused::Header));
    }

    #[test]
    fn reading_needs_no_header_and_other_methods_are_refused() {
        assert_eq!(guard().check(&Head { method: "HEAD", ..get("localhost") }), Ok(()));
        for method in ["OPTIONS", "TRACE", "CONNECT", "get", "PROPFIND", ""] {
            assert_eq!(guard().check(&Head { method, ..post() }), Err(Refused::Method), "{method}");
        }
    }

    #[test]
    fn each_refusal_has_its_status() {
        for (refused, status) in [
            (Refused::Host, 421),
            (Refused::Origin, 403),
            (Refused::Method, 403),
            (Refused::Header, 403),
            (Refused::ContentType, 415),
        ] {
            assert_eq!(refused.status(), status);
            assert!(!refused.word().is_empty() && !refused.to_string().is_empty());
        }
    }
}
