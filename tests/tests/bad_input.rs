//! Bad input, against real daemons on loopback, without root.
//!
//! Owns: one test for each case, so that they run side by side. Must not know: the cases; see `bad_input`.
//! Driven by: `cargo test`.

use std::path::Path;

use gossamer_tests::bad_input::CASES;
use gossamer_tests::process::{Logs, scenario};

macro_rules! cases {
    ($($test:ident: $name:literal,)+) => {
        $(
            #[test]
            fn $test() -> anyhow::Result<()> {
                let case = CASES.iter().find(|(name, _)| *name == $name).expect("the case exists").1;
                scenario(Path::new(env!("CARGO_BIN_EXE_gossamer-tested")), Logs::Shown, case)
            }
        )+

        #[test]
        fn every_case_has_a_test() {
            let mut tested = vec![$($name),+];
            let mut cases: Vec<_> = CASES.iter().map(|(name, _)| *name).collect();
            tested.sort_unstable();
            cases.sort_unstable();
            assert_eq!(tested, cases);
        }
    };
}

cases! {
    a_text_that_is_no_token_is_refused: "wrong-token",
    a_mistyped_or_cut_token_is_refused_and_the_right_one_works: "mistyped-token",
    an_expired_token_is_refused: "expired-token",
    a_second_use_of_a_token_is_refused: "used-token",
    a_token_nobody_signed_is_refused: "foreign-token",
    an_issuer_of_another_mesh_is_not_believed: "token-of-another-root",
    a_node_of_a_mesh_does_not_join_another: "joined-elsewhere",
    a_mesh_port_in_use_is_named: "mesh-port-in-use",
    two_dns_ports_in_use_are_named: "both-dns-ports-taken",
    a_server_that_would_ask_back_is_no_upstream_server: "upstream-that-comes-back",
    a_taken_dns_port_moves_dns_and_is_a_finding: "dns-port-taken",
    a_loose_state_directory_is_refused_with_the_command_that_mends_it: "loose-state-directory",
    a_state_directory_serves_one_daemon: "one-state-directory-twice",
    a_pool_serves_one_daemon: "one-pool-twice",
    an_unknown_key_is_refused_with_the_nearest_one: "unknown-key",
    zones_and_names_of_others_are_refused_with_the_reason: "zone-of-others",
    names_are_single_labels: "name-that-is-no-label",
    exporting_a_port_nobody_listens_on_warns: "nobody-listens",
    a_stolen_port_takes_the_name_out_of_dns_and_says_why: "stolen-port",
    hostile_bytes_end_their_connection_and_nothing_else: "hostile-bytes",
    commands_without_a_daemon_say_so: "no-daemon",
}
