//! Proofs that tunables do what they say: for every row of the table something that behaves otherwise once it is set. Stack and
//! decision are the real ones, on clocks of their own. That all of them are set in a running daemon, refused out of range,
//! survive a reload and go back to their defaults is `tests/tunables.rs`.

mod client;
mod stack;
mod xdp;

use crate::config::TUNABLES;
use client::for_the_service_alone;

/// What shows that a tunable does what it says.
enum Proof {
    /// A test of this module.
    Here(fn()),
    /// A test beside what it is about, in a file of this package: it takes more than a stack, or than the decision.
    There { file: &'static str, test: &'static str },
}

use Proof::Here;

const fn there(file: &'static str, test: &'static str) -> Proof {
    Proof::There { file, test }
}

/// A proof for each row of the table.
const PROOFS: &[(&str, Proof)] = &[
    ("time-wait", Here(stack::a_time_wait_ends_when_the_tunable_says)),
    ("time-wait-limit", Here(stack::time_waits_beyond_the_limit_make_room)),
    ("fin-wait-2", Here(stack::a_fin_wait_2_ends_when_the_tunable_says)),
    ("orphan-limit", Here(stack::orphans_beyond_the_limit_are_reset)),
    ("orphan-retries", Here(stack::a_last_ack_that_nobody_answers_is_given_up_after_orphan_retries)),
    (
        "close-wait",
        there(
            "src/service/tests/stuck.rs",
            "a_backend_that_never_closes_is_seen_and_let_go_after_close_wait",
        ),
    ),
    ("initial-rto", Here(stack::the_first_retransmission_comes_after_the_initial_rto)),
    ("min-rto", Here(stack::no_retransmission_comes_sooner_than_the_minimum)),
    ("max-rto", Here(stack::retransmissions_back_off_to_the_maximum_and_no_further)),
    ("retries", Here(stack::data_is_sent_again_as_often_as_the_tunable_says)),
    ("user-timeout", Here(stack::unacknowledged_data_ends_a_connection_after_the_user_timeout)),
    ("keepalive-time", Here(stack::a_silent_client_is_asked_after_keepalive_time)),
    ("keepalive-interval", Here(stack::questions_are_an_interval_apart)),
    ("keepalive-probes", Here(stack::as_many_questions_are_asked_as_the_tunable_says)),
    ("delayed-ack", Here(stack::an_acknowledgment_waits_for_as_long_as_delayed_ack)),
    ("congestion-control", Here(stack::a_loss_leaves_half_a_window_to_newreno_and_more_to_cubic)),
    ("zero-window", Here(stack::a_closed_window_ends_a_connection_after_zero_window)),
    (
        "stall-time",
        there("src/service/tests/ends.rs", "a_client_that_shuts_its_window_after_the_backends_end_is_let_go"),
    ),
    ("syn-timeout", Here(stack::a_syn_ack_is_sent_again_after_syn_timeout)),
    ("syn-ack-retries", Here(stack::a_syn_ack_is_sent_again_as_often_as_the_tunable_says)),
    ("half-open-limit", Here(stack::half_open_connections_beyond_the_limit_make_room)),
    ("accept-backlog", Here(stack::connections_beyond_the_backlog_wait_or_are_reset)),
    ("accept-overflow", Here(stack::connections_beyond_the_backlog_wait_or_are_reset)),
    ("stateful-rate", Here(xdp::stateful_services_leave_no_more_syns_to_the_stack_than_the_rate)),
    ("stateful-burst", Here(xdp::stateful_services_leave_no_more_syns_at_once_than_the_burst)),
    ("calm-time", there("src/control/modes.rs", "a_flood_is_over_after_the_calm_time_that_is_set")),
    ("cookie-period", there("tests/daemon.rs", "a_tuned_value_takes_effect_at_once_on_what_is_there")),
    (
        "strict",
        there("src/control/strict.rs", "a_decision_counts_from_the_next_epoch_on_and_changes_no_other"),
    ),
    ("strict-rate", there("src/control/strict.rs", "the_rate_and_the_calm_time_are_those_that_are_set")),
    ("strict-calm-time", there("src/control/strict.rs", "the_rate_and_the_calm_time_are_those_that_are_set")),
    (
        "exit-grace",
        there(
            "tests/daemon.rs",
            "a_dead_daemons_ports_are_silent_for_the_grace_and_then_left_to_the_host_or_dropped",
        ),
    ),
    ("reply-rate", Here(xdp::a_prefix_is_sent_no_more_syn_acks_than_the_rate)),
    ("reply-burst", Here(xdp::a_prefix_is_sent_no_more_syn_acks_at_once_than_the_burst)),
    ("verified-reply-rate", Here(xdp::verified_sources_have_a_rate_of_their_own)),
    ("verified-time", Here(xdp::a_source_is_verified_for_the_time_and_no_longer)),
    ("reply-prefix-v4", Here(xdp::neighbours_share_a_budget_as_far_as_the_prefix_reaches)),
    ("reply-prefix-v6", Here(xdp::neighbours_share_a_budget_as_far_as_the_prefix_reaches)),
    ("source-rate", Here(xdp::a_source_opens_no_more_connections_than_the_rate)),
    ("source-burst", Here(xdp::a_source_opens_no_more_connections_at_once_than_the_burst)),
    ("source-flows", Here(xdp::a_source_has_no_more_connections_than_it_may)),
    ("service-flows", Here(xdp::a_service_has_no_more_connections_than_it_may)),
    ("flow-rate", Here(xdp::a_connection_under_pressure_sends_no_more_than_the_rate)),
    ("flow-burst", Here(xdp::a_connection_under_pressure_sends_no_more_at_once_than_the_burst)),
    ("icmp-rate", Here(xdp::no_more_complaints_about_a_connection_are_heard_than_the_rate)),
    ("attack-syns", there("src/control/attacks.rs", "every_threshold_and_the_calm_time_are_tunables")),
    ("attack-acks", there("src/control/attacks.rs", "every_threshold_and_the_calm_time_are_tunables")),
    ("attack-connections", there("src/control/attacks.rs", "every_threshold_and_the_calm_time_are_tunables")),
    ("attack-stalls", there("src/control/attacks.rs", "every_threshold_and_the_calm_time_are_tunables")),
    ("attack-calm-time", there("src/control/attacks.rs", "every_threshold_and_the_calm_time_are_tunables")),
    ("drain-time", there("tests/daemon.rs", "connections_may_finish_for_as_long_as_drain_time_says_now")),
    (
        "xdp-log",
        there(
            "tests/monitor.rs",
            "xdp_logs_its_verdicts_while_xdp_log_is_on_and_no_more_of_them_than_it_may",
        ),
    ),
];

#[test]
fn every_tunable_has_a_proof_that_it_takes_effect() {
    let names: Vec<_> = PROOFS.iter().map(|(name, _)| *name).collect();
    let tunables: Vec<_> = TUNABLES.iter().map(|tunable| tunable.name).collect();
    assert_eq!(
        names, tunables,
        "each tunable, in the order of the table, needs what shows that it does something"
    );
    for (name, proof) in PROOFS {
        match proof {
            Here(proof) => proof(),
            Proof::There { file, test } => {
                let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
                let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
                let field = name.replace('-', "_");
                let body = text.split("#[test]").find_map(|part| {
                    let (head, body) = part.split_once('{')?;
                    head.contains(&format!("fn {test}()")).then_some(body)
                });
                let body = body.unwrap_or_else(|| panic!("{name}: {file} has no test {test}"));
                // In the test itself: that the file speaks of it elsewhere shows nothing.
                assert!(body.contains(*name) || body.contains(&field), "{name}: {test} does not set it");
            }
        }
    }
}

#[test]
fn what_a_service_may_have_for_itself_takes_effect_where_the_common_values_do_not() {
    let of_stack = |name: &str| PROOFS.iter().find(|(known, _)| *known == name).map(|(_, proof)| proof);
    let proven = TUNABLES.iter().filter(|tunable| tunable.per_service).filter(|tunable| {
        let Some(Here(proof)) = of_stack(tunable.name) else { return false };
        for_the_service_alone(*proof);
        true
    });
    assert_eq!(proven.count(), 13, "those of the stack");
}
