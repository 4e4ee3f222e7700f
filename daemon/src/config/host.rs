//! Facts about the machine that defaults depend on.
//!
//! Owns: the only reading of environment, user id and host name for settings.
//! Must not know: keys. Driven by: `cli`, once, and by tests with made-up facts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use gossamer_wire::NodeName;

/// Who runs the command, and where.
#[derive(Clone, Default)]
pub struct Host {
    /// Root has other default directories.
    pub is_root: bool,
    /// The kernel has IPv6.
    pub has_ipv6: bool,
    /// The host's name as the kernel knows it.
    pub name: String,
    /// Environment variables that are UTF-8.
    pub variables: BTreeMap<String, String>,
}

impl Host {
    /// Reads the facts of this machine.
    pub fn this() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self {
            is_root: nix::unistd::geteuid().is_root(),
            has_ipv6: Path::new("/proc/net/if_inet6").exists(),
            name: nix::unistd::gethostname()
                .map_or_else(|_| String::new(), |name| name.to_string_lossy().into()),
            variables: variables.collect(),
        }
    }

    /// Returns a variable unless it is unset or empty.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Returns the default name of the node: the first label of the host name, made a DNS label.
    pub fn node_name(&self) -> NodeName {
        let first = self.name.split('.').next().unwrap_or_default().to_ascii_lowercase();
        let kept = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let label: String = first.chars().map(kept).take(63).collect();
        let fallback = || "gossamer".parse().expect("a label");
        label.trim_matches('-').parse().unwrap_or_else(|_| fallback())
    }

    pub(super) fn state_home(&self) -> Option<PathBuf> {
        if self.is_root {
            return Some(PathBuf::from("/var/lib"));
        }
        self.xdg("XDG_STATE_HOME", ".local/state")
    }

    pub(super) fn config_home(&self) -> PathBuf {
        if self.is_root {
            return PathBuf::from("/etc/gossamer");
        }
        self.xdg("XDG_CONFIG_HOME", ".config").unwrap_or_default().join("gossamer")
    }

    pub(super) fn runtime_dir(&self) -> Option<PathBuf> {
        if self.is_root {
            return Some(PathBuf::from("/run/gossamer"));
        }
        self.absolute("XDG_RUNTIME_DIR")
    }

    fn xdg(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        self.absolute(variable).or_else(|| self.absolute("HOME").map(|home| home.join(below_home)))
    }

    /// Relative paths in these variables are to be ignored (XDG base directory specification 0.8).
    fn absolute(&self, variable: &str) -> Option<PathBuf> {
        self.variable(variable).map(PathBuf::from).filter(|path| path.is_absolute())
    }
}

/// Names of variables only: a value may be a token.
impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { is_root, has_ipv6, name, variables } = self;
        f.debug_struct("Host")
            .field("is_root", is_root)
            .field("has_ipv6", has_ipv6)
            .field("name", name)
            .field("variables", &variables.keys())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_named_after_the_first_label_of_the_host() {
        for (host, node) in [
            ("db1.example.net", "db1"),
            ("My_Laptop", "my-laptop"),
            ("-x-", "x"),
            ("", "gossamer"),
            ("node", "gossamer"),
        ] {
            let facts = Host { name: host.to_owned(), ..Host::default() };
            assert_eq!(facts.node_name().as_str(), node, "{host}");
        }
    }

    #[test]
    fn relative_directories_in_the_environment_are_ignored() {
        let mut facts = Host::default();
        facts.variables.insert("XDG_STATE_HOME".to_owned(), "relative".to_owned());
        assert_eq!(facts.state_home(), None);
        facts.variables.insert("HOME".to_owned(), "/home/u".to_owned());
        assert_eq!(facts.state_home(), Some("/home/u/.local/state".into()));
    }
}
