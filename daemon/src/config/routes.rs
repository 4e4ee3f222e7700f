//! The routes of the configuration: what this node wishes about the instances of services, by name.
//!
//! Owns: their form. Must not know: what a wish does. Driven by: `values`.
//!
//! ```toml
//! [route."orders"]
//! order = ["zone", "region", "any"]
//! only = "region"
//! spill_below = 70
//! ```
//!
//! Where a source has text only: `orders.only=region;orders.spill_below=70`.

use std::collections::BTreeMap;

use gossamer_core::select::Routes;
use gossamer_core::vip::VipName;
use gossamer_wire::{Routing, Tier, parse_order};

use super::fault::nearest;

/// What is wrong, and what to write.
type Wrong = (String, String);

/// The wishes there are.
const FIELDS: [&str; 4] = ["only", "order", "spill_below", "transport"];

/// Reads pairs of `NAME.FIELD` and its value.
pub(super) fn routes(pairs: &[(String, String)]) -> Result<Routes, Wrong> {
    let mut routes: BTreeMap<VipName, Routing> = BTreeMap::new();
    for (key, value) in pairs {
        let (name, field) = key
            .rsplit_once('.')
            .ok_or_else(|| (format!("{key:?} says nothing about a service"), example()))?;
        let routing = routes.entry(service(name)?).or_default();
        assign(routing, field, value).map_err(|(why, fix)| (format!("{name:?}: {why}"), fix))?;
    }
    Ok(Routes(routes))
}

/// Splits the form of sources that have text only.
pub(super) fn split(text: &str) -> Result<Vec<(String, String)>, Wrong> {
    let items = text.split(';').map(str::trim).filter(|item| !item.is_empty());
    let pair = |item: &str| {
        let (key, value) = item.split_once('=').ok_or_else(|| (format!("{item:?} has no `=`"), example()))?;
        Ok((key.trim().to_owned(), value.trim().to_owned()))
    };
    items.map(pair).collect()
}

fn example() -> String {
    "write for example orders.only=region;orders.spill_below=70".to_owned()
}

fn service(name: &str) -> Result<VipName, Wrong> {
    let wrong =
        |error: gossamer_wire::NameError| (format!("{name:?}: {error}"), "correct the name".to_owned());
    match name.split('.').collect::<Vec<_>>()[..] {
        [service] => Ok(VipName::Service(service.parse().map_err(wrong)?)),
        [service, group] => {
            Ok(VipName::Group(service.parse().map_err(wrong)?, group.parse().map_err(wrong)?))
        }
        _ => Err((format!("{name:?} names no service"), "write SERVICE or SERVICE.GROUP".to_owned())),
    }
}

fn assign(routing: &mut Routing, field: &str, value: &str) -> Result<(), Wrong> {
    let tier_fix = |word: &str| {
        let words = Tier::ALL.map(Tier::word);
        nearest(word, words)
            .map_or_else(|| format!("write one of {}", words.join(", ")), |near| format!("write {near}"))
    };
    match field {
        "order" => {
            let fix = || {
                let unknown = value.split(',').map(str::trim).find(|word| word.parse::<Tier>().is_err());
                unknown
                    .map_or_else(|| "write for example [\"zone\", \"region\", \"any\"]".to_owned(), tier_fix)
            };
            routing.order = parse_order(value).map_err(|error| (error.to_string(), fix()))?;
        }
        "only" => {
            let tier: Tier = value
                .parse()
                .map_err(|error: gossamer_wire::RoutingError| (error.to_string(), tier_fix(value)))?;
            routing.only = Some(tier);
        }
        "spill_below" => {
            let percentage = value.parse().ok().filter(|percentage| *percentage <= 100);
            let wrong = || (format!("{value:?} is no percentage"), "write a number from 0 to 100".to_owned());
            routing.spill_below = Some(percentage.ok_or_else(wrong)?);
        }
        "transport" => {
            let fix = || "write \"tls\", or leave it out".to_owned();
            let carrier =
                value.parse().map_err(|error: gossamer_wire::RoutingError| (error.to_string(), fix()))?;
            routing.carrier = Some(carrier);
        }
        other => {
            let fix = nearest(other, FIELDS).map_or_else(
                || format!("write one of {}", FIELDS.join(", ")),
                |near| format!("write {near}"),
            );
            return Err((format!("a route has no {other:?}"), fix));
        }
    }
    Ok(())
}

/// Writes routes as the file would hold them.
pub(super) fn words(routes: &Routes) -> String {
    let one = |(name, routing): (&VipName, &Routing)| {
        let order: Vec<_> = routing.order.iter().map(|tier| format!("\"{tier}\"")).collect();
        let order = (!order.is_empty()).then(|| format!("order = [{}]", order.join(", ")));
        let only = routing.only.map(|only| format!("only = \"{only}\""));
        let spill = routing.spill_below.map(|percentage| format!("spill_below = {percentage}"));
        let carrier = routing.carrier.map(|carrier| format!("transport = \"{carrier}\""));
        let fields: Vec<_> = [order, only, spill, carrier].into_iter().flatten().collect();
        format!("\"{name}\" = {{ {} }}", fields.join(", "))
    };
    let all: Vec<_> = routes.0.iter().map(one).collect();
    if all.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", all.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<String, Wrong> {
        routes(&split(text)?).map(|routes| words(&routes))
    }

    #[test]
    fn wishes_are_read_as_they_are_written() {
        let text =
            "orders.order=zone,any;orders.only=region; orders.west.spill_below=70; orders.west.transport=tls";
        let expected = "{ \"orders\" = { order = [\"zone\", \"any\"], only = \"region\" }, \"orders.west\" = { spill_below = 70, transport = \"tls\" } }";
        assert_eq!(of(text).as_deref(), Ok(expected));
        assert_eq!(of("").as_deref(), Ok("{}"));
    }

    #[test]
    fn what_is_wrong_is_named_with_the_nearest_word() {
        for (text, why, fix) in [
            ("orders.onyl=region", "a route has no \"onyl\"", "write only"),
            ("orders.spil_below=7", "a route has no", "write spill_below"),
            ("orders.only=regoin", "is none of node, group, zone, region, any", "write region"),
            ("orders.order=zone,zones", "\"zones\" is none of", "write zone"),
            ("orders.order=any,zone", "goes on after any", "write for example"),
            ("orders.transport=quic", "\"quic\" is no transport", "write \"tls\""),
            ("orders.spill_below=101", "no percentage", "0 to 100"),
            ("a.b.c.only=any", "names no service", "SERVICE.GROUP"),
            ("Orders.only=any", "a-z", "correct"),
            ("orders", "has no `=`", "orders.only=region"),
        ] {
            let (found, remedy) = of(text).expect_err(text);
            assert!(found.contains(why) && remedy.contains(fix), "{text}: {found}; {remedy}");
        }
    }
}
