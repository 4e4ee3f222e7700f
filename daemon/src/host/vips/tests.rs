//! The plan of a host's kernel, and what is left alone.

use super::*;

use gossamer_core::vip::Pool;

fn redirect(pool: &str, slot: u8) -> Redirect {
    Redirect::new(pool.parse::<Pool>().expect("a pool"), slot)
}

fn pods() -> Vec<Network> {
    ["10.244.0.0/16", "fd00:10:244::/56"].map(|text| text.parse().expect("a network")).into()
}

fn kubernetes() -> (Redirect, Plan) {
    let redirect = redirect("240.80.0.0/12", 0);
    (redirect, Plan::new(&redirect, &pods(), true))
}

fn present(comment: Option<&str>, routes: &[(&str, bool)]) -> Present {
    Present {
        comment: comment.map(str::to_owned),
        rules: rules_in(&kubernetes().1.rules),
        routes: routes.iter().map(|(network, ours)| ((*network).to_owned(), *ours)).collect(),
        addresses: Vec::new(),
    }
}

const V4: &str = "240.80.0.0/12";
const V6: &str = "fd67:6f73:7361::/64";

#[test]
fn loopback_pools_need_no_ipv4_route_and_other_slots_have_other_names() {
    let plan = Plan::new(&redirect("127.241.0.0/16", 1), &[], true);
    assert_eq!(
        (plan.table.as_str(), plan.routes.join(" ")),
        ("gossamer_1", "fd67:6f73:7361:1::/64".to_owned())
    );
    assert!(plan.rules.contains("dnat ip to 127.241.0.1:4689"), "{}", plan.rules);
    assert!(Plan::new(&redirect("127.240.0.0/16", 0), &[], false).routes.is_empty());
    assert_eq!(kubernetes().1.routes, [V4, V6]);
}

#[test]
fn clients_are_let_in_before_all_others_are_dropped() {
    let rules = kubernetes().1.rules;
    let at = |words: &str| rules.find(words).unwrap_or_else(|| panic!("{words} in\n{rules}"));
    assert!(at("iif \"lo\" accept") < at("ip saddr 10.244.0.0/16 ip daddr 240.80.0.0/12 accept"));
    assert!(at("ip saddr 10.244.0.0/16") < at("ip daddr 240.80.0.0/12 drop"));
    assert!(
        at("ip6 saddr fd00:10:244::/56 ip6 daddr fd67:6f73:7361::/64 accept")
            < at("ip6 daddr fd67:6f73:7361::/64 drop")
    );
    at("ip daddr != 240.80.0.0/24 meta l4proto tcp dnat ip to 240.80.0.1:4679");
    at("dnat ip6 to [fd67:6f73:7361::1]:4679");
    assert!(!Plan::new(&redirect("127.240.0.0/16", 0), &[], false).rules.contains("ip6"));
}

#[test]
fn connections_are_redirected_before_any_other_program_can() {
    let rules = kubernetes().1.rules;
    for hook in ["prerouting", "output"] {
        assert!(rules.contains(&format!("type nat hook {hook} priority -101;")), "{hook} in\n{rules}");
    }
}

#[test]
fn the_table_is_loaded_when_it_is_missing_or_says_something_else() {
    let (redirect, plan) = kubernetes();
    let decide = |present: &Present| plan.setup(&redirect, None, present).expect("can be").0;
    let nothing = decide(&present(None, &[]));
    assert_eq!((nothing.loads, nothing.routes_added), (true, vec![V4.to_owned(), V6.to_owned()]));
    let done = decide(&present(Some(&plan.comment), &[(V4, true), (V6, true)]));
    assert!(done.is_empty() && done.notes.is_empty());
    let whole = present(Some(&plan.comment), &[(V4, true), (V6, true)]);
    for rules in [0, whole.rules - 1] {
        assert!(decide(&Present { rules, ..whole.clone() }).loads, "of {} rules {rules} stand", whole.rules);
    }
    let other = decide(&present(Some("gossamer host setup 00"), &[(V4, true), (V6, true)]));
    assert_eq!(other.commands(), ["nft -f -"]);
    assert_ne!(Plan::new(&redirect, &[], true).comment, plan.comment, "other clients are other rules");
}

#[test]
fn what_others_made_is_neither_replaced_nor_removed() {
    let (redirect, plan) = kubernetes();
    for comment in ["", "mine"] {
        let refusal = plan.setup(&redirect, None, &present(Some(comment), &[])).expect_err("not ours");
        assert!(refusal.to_string().contains("nft delete table inet gossamer"), "{refusal}");
        assert!(plan.record().undo(&present(Some(comment), &[(V4, false)])).is_empty());
    }
    let (changes, record) = plan.setup(&redirect, None, &present(None, &[(V4, false)])).expect("can be");
    assert_eq!((changes.routes_added, record.routes), (vec![V6.to_owned()], vec![V6.to_owned()]));
    assert!(changes.notes[0].contains("undo leaves it"));
}

#[test]
fn a_pool_with_an_address_of_this_host_is_refused() {
    let (redirect, plan) = kubernetes();
    for taken in ["240.81.0.9", "fd67:6f73:7361::9"] {
        let present = Present { addresses: vec![taken.parse().expect("ip")], ..Present::default() };
        let refusal = plan.setup(&redirect, None, &present).expect_err(taken).to_string();
        assert!(refusal.contains(taken) && refusal.contains("vip.pool"), "{refusal}");
    }
}

#[test]
fn another_pool_takes_the_route_of_the_first_one_back() {
    let redirect = redirect("127.240.0.0/16", 0);
    let plan = Plan::new(&redirect, &[], false);
    let earlier = Record { table: "gossamer".to_owned(), routes: vec![V4.to_owned(), V6.to_owned()] };
    let now = present(Some("gossamer host setup 00"), &[(V4, true), (V6, false)]);
    let (changes, record) = plan.setup(&redirect, Some(&earlier), &now).expect("can be");
    assert_eq!((&changes.routes_removed, record.routes), (&vec![V4.to_owned()], vec![]));
    assert!(changes.commands()[0].contains("route del") && changes.commands()[1] == "nft -f -");
    let fresh = kubernetes().1.setup(&kubernetes().0, None, &present(None, &[])).expect("can be").0;
    assert_eq!(fresh.commands()[0], "nft -f -", "the guard stands before there is a route");
}

#[test]
fn undo_removes_what_is_there_and_ours() {
    let (_, plan) = kubernetes();
    let words = |present: &Present| {
        plan.record().undo(present).iter().map(|words| words.join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(
        words(&present(Some(&plan.comment), &[(V4, true), (V6, true)])),
        [
            "ip -4 route del local 240.80.0.0/12 dev lo proto 147",
            "ip -6 route del local fd67:6f73:7361::/64 dev lo proto 147",
            "nft delete table inet gossamer"
        ]
    );
    assert!(words(&present(None, &[])).is_empty());
}

#[test]
fn records_of_another_kind_are_not_believed() {
    assert!(kubernetes().1.record().is_plausible(0));
    assert!(!kubernetes().1.record().is_plausible(1));
    let foreign = Record { table: "filter".to_owned(), routes: vec![] };
    assert!(!foreign.is_plausible(0));
    let odd = Record { table: "gossamer".to_owned(), routes: vec!["default".to_owned()] };
    assert!(!odd.is_plausible(0));
}

#[test]
fn what_the_tools_print_is_understood() {
    let listing = "table inet gossamer {\n\tcomment \"gossamer host setup 12\"\n\tchain x {\n\t}\n}\n";
    assert_eq!(comment_in(listing), "gossamer host setup 12");
    assert_eq!(comment_in("table inet gossamer {\n\tchain x {\n\t\tcomment \"y\"\n\t}\n}\n"), "");
    assert_eq!(route_in("local 240.80.0.0/12 dev lo proto 147 scope host \n"), Some(true));
    assert_eq!(route_in("local fd67:6f73:7361::/64 dev lo metric 1024 pref medium\n"), Some(false));
    assert_eq!(route_in(""), None);
    let listing = "\t\ttype filter hook prerouting priority raw; policy accept;\n\t\tiif \"lo\" accept\n\
        \t\tip daddr 127.240.0.0/16 drop\n\t\tip daddr 127.240.0.0/16 dnat ip to 127.240.0.1:4679\n";
    assert_eq!(rules_in(listing), 3);
    assert!(is_absence("Error: No such file or directory\nlist table inet gossamer\n"));
    assert!(!is_absence(
        "Operation not permitted (you must be root)\nnetlink: Error: cache initialization failed"
    ));
}
