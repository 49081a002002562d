//! Doorbell on real engines, one story per file. `cargo test -p doorbell-tests -- NAME` runs those
//! whose name has NAME in it.
#![expect(clippy::print_stderr, reason = "tests talk to a terminal")]
#![expect(
    clippy::unwrap_used,
    reason = "this is a test; the lint does not see that without its harness"
)]
#![expect(clippy::too_many_lines, reason = "a story is told from its beginning to its end")]

use std::process::ExitCode;
use std::sync::Arc;

use doorbell_tests::engines;
use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;

mod api;
mod aside;
mod broker;
mod bundles;
mod changes;
mod clocks;
mod config;
mod connections;
mod delivery;
mod deployments;
mod event_types;
mod fan_out;
mod filters;
mod gate;
mod hanging;
mod held;
mod hostile;
mod https;
mod interop;
mod keys;
mod kills;
mod limits;
mod logs;
mod losses;
mod names;
mod openapi;
mod parcels;
mod patterns;
mod publishing;
mod removals;
mod rights;
mod rotation;
mod secrets;
mod sideline;
mod silence;
mod steps;
mod store;
mod templates;
mod verification;

/// Makes a trial of each story; its name is that of its file and function.
macro_rules! stories {
    ($runtime:expr, $($file:ident :: $story:ident),+ $(,)?) => {
        vec![$({
            let runtime: Arc<Runtime> = Arc::clone(&$runtime);
            Trial::test(concat!(stringify!($file), "::", stringify!($story)), move || {
                let result: anyhow::Result<()> = runtime.block_on($file::$story());
                result.map_err(|error| format!("{error:?}").into())
            })
        }),+]
    };
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A story is several processes and mostly waits; more at once only make them slow.
    arguments.test_threads.get_or_insert(3);
    if arguments.list {
        return libtest_mimic::run(&arguments, vec![]).exit_code();
    }
    doorbell_platform::tls::install();
    let prepared = engines::prepare()
        .and_then(|()| Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?));
    let runtime = match prepared {
        Ok(runtime) => Arc::new(runtime),
        Err(error) => {
            eprintln!("the stories cannot begin: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let trials = all(&runtime);
    let conclusion = libtest_mimic::run(&arguments, trials);
    runtime.block_on(engines::end());
    conclusion.exit_code()
}

fn all(runtime: &Arc<Runtime>) -> Vec<Trial> {
    stories![
        runtime,
        // The longest: nobody waits for it in the end.
        deployments::a_rabbitmq_cluster_that_loses_its_nodes_loses_nothing,
        clocks::a_clock_that_is_set_stops_nobody,
        delivery::each_subscriber_gets_what_it_wants,
        delivery::failures_are_retried_on_time,
        delivery::every_failure_has_its_end,
        delivery::forbidden_addresses_are_refused_at_the_connection,
        delivery::hostile_endpoints_are_survived,
        gate::an_endpoint_that_is_down_is_left_alone_and_then_served,
        gate::an_endpoint_that_asks_for_it_is_left_alone,
        gate::an_endpoint_that_hangs_holds_nobody_up,
        gate::a_flood_for_a_slow_endpoint_holds_nobody_up,
        gate::who_is_held_for_a_busy_endpoint_comes_back_at_its_turn,
        gate::a_rate_limit_holds_over_two_dispatchers,
        gate::turns_are_given_by_one_clock_for_all,
        gate::a_subscription_that_only_fails_is_disabled_in_the_end,
        hanging::many_endpoints_that_hang_hold_nobody_up,
        fan_out::a_kill_repeats_no_more_than_was_in_flight,
        fan_out::a_lost_connection_repeats_no_more_than_was_in_flight,
        fan_out::what_comes_again_waits_for_its_ledger,
        fan_out::what_was_done_before_redis_was_away_is_not_done_again,
        fan_out::who_stood_still_repeats_no_more_than_was_in_flight,
        fan_out::a_broadcast_reaches_everyone_once,
        parcels::what_fails_together_goes_on_together,
        parcels::a_kill_repeats_no_more_of_a_parcel_than_was_in_flight,
        bundles::what_is_held_of_a_flood_travels_together,
        bundles::a_kill_amid_a_bundle_repeats_no_more_than_was_in_flight,
        bundles::of_a_bundle_each_is_what_it_would_be_alone,
        sideline::a_flood_over_http_goes_aside_at_ingest,
        sideline::a_flood_over_amqp_is_moved_aside_once,
        sideline::what_falls_due_at_once_delays_nobodys_retries,
        sideline::dispatchers_killed_while_they_move_a_flood_aside_repeat_little,
        held::deliveries_are_kept_and_flow_again,
        held::what_is_held_for_too_long_is_given_up,
        held::what_redis_forgets_is_read_again,
        held::schedulers_killed_while_deliveries_flow_again_lose_none,
        held::a_stream_deleted_under_us_begins_anew,
        held::who_fills_the_stream_pushes_out_nobody_elses,
        publishing::messages_that_break_the_rules_are_rejected,
        publishing::what_is_no_text_ends_nobodys_connection,
        publishing::ids_and_times_are_given_and_kept,
        publishing::the_http_api_accepts_what_is_confirmed,
        publishing::copies_that_come_at_once_are_delivered_once,
        publishing::the_largest_events_go_every_way_that_others_go,
        publishing::an_id_that_is_given_again_later_is_another_event,
        aside::what_was_put_into_quarantine_comes_back,
        aside::what_was_rejected_comes_back,
        api::subscriptions_live_and_die,
        api::bad_requests_are_named,
        api::many_are_created_in_one_call,
        api::many_are_changed_in_one_call_and_some_are_found,
        api::a_tenant_deleted_while_it_is_used_is_there_or_gone,
        openapi::every_example_is_carried_out,
        openapi::the_page_needs_nothing_from_elsewhere,
        filters::only_what_a_filter_wants_is_delivered,
        filters::hard_filters_keep_nobody_waiting,
        filters::a_filter_can_be_tried_before_anyone_relies_on_it,
        removals::a_removed_event_is_delivered_no_more_and_forgotten,
        removals::an_event_is_removed_in_the_middle_of_its_fan_out,
        removals::what_was_removed_long_ago_can_be_removed_again,
        removals::a_deleted_tenant_says_when_its_payloads_are_gone,
        removals::what_waits_longer_than_its_tenants_retention_is_given_up,
        keys::a_bound_key_sees_and_touches_its_tenant_only,
        keys::a_key_allows_what_its_scopes_say,
        keys::a_revoked_key_is_worth_nothing_within_two_seconds,
        secrets::no_secret_lies_in_clear_and_none_can_be_moved,
        secrets::another_key_takes_over_while_events_flow,
        secrets::a_dispatcher_without_the_key_delivers_nothing_unsigned,
        verification::nothing_comes_before_a_yes,
        verification::another_url_is_another_endpoint,
        verification::whoever_says_yes_later_is_asked_again,
        config::a_document_is_compared_and_carried_out,
        config::a_document_cut_off_by_a_kill_is_carried_on_with,
        steps::redis_killed_between_any_two_steps_of_a_change_leaves_nothing_half_done,
        changes::whoever_changes_something_is_noted,
        changes::whoever_hangs_up_is_noted_all_the_same,
        changes::what_is_sent_again_is_done_once,
        changes::a_key_may_not_ask_all_the_time,
        templates::a_template_makes_the_body,
        templates::a_template_that_fails_is_a_failed_attempt,
        templates::a_template_is_tried_before_anyone_relies_on_it,
        templates::hard_templates_keep_nobody_waiting,
        event_types::what_the_catalogue_objects_to_is_refused,
        event_types::a_catalogue_travels_as_one_document,
        event_types::what_others_have_changed_is_not_overwritten,
        names::names_that_hang_keep_nobody_waiting,
        names::what_a_name_leads_to_is_judged,
        names::another_address_of_a_name_is_called_where_one_is_dead,
        https::an_endpoint_is_called_over_tls_if_its_certificate_is_good,
        https::who_was_called_before_is_known_again,
        connections::hosts_that_are_called_once_leave_nothing_open,
        connections::a_dispatcher_without_files_spends_no_attempts,
        hostile::test_calls_that_hang_keep_nobody_waiting,
        hostile::test_calls_of_many_that_hang_keep_nobody_waiting,
        hostile::every_bad_body_is_a_problem_of_the_callers,
        hostile::whatever_is_taken_can_be_read_again,
        hostile::no_forbidden_url_or_header_gets_in,
        limits::a_tenant_gets_what_it_is_allowed,
        losses::who_is_known_is_served_while_others_wait_for_redis,
        losses::who_is_gone_keeps_nobody_waiting_without_redis,
        losses::a_node_that_was_emptied_makes_nobody_look_unsubscribed,
        losses::what_is_lost_for_good_is_gone_on_without,
        losses::a_redis_that_may_forget_is_not_trusted,
        store::redis_restarted_silent_or_emptied_loses_nothing,
        store::a_full_redis_loses_nothing,
        store::who_has_held_deliveries_may_be_very_many,
        store::a_change_of_one_tenants_limits_is_read_alone,
        store::a_note_tells_copies_and_is_none_of_itself,
        store::what_came_back_is_told_by_one_clock,
        store::a_cluster_answers_again_after_each_failover,
        store::a_cluster_answers_again_without_a_node_that_is_frozen,
        silence::connections_that_were_forgotten_are_made_anew,
        silence::a_redis_that_is_only_a_replica_now_is_left,
        kills::a_dispatcher_killed_amid_10_000_events_loses_none,
        kills::copies_that_a_killed_dispatcher_had_are_delivered_once,
        kills::any_service_killed_under_load_loses_none,
        kills::everything_killed_in_turn_loses_nothing,
        kills::whatever_happens_loses_nothing,
        kills::retries_that_come_due_while_rabbitmq_starts_are_not_late,
        kills::a_lone_retry_that_comes_due_while_rabbitmq_starts_is_not_late,
        kills::a_kill_repeats_no_more_of_single_deliveries_than_may_be_in_flight,
        kills::a_clean_stop_makes_no_duplicates,
        kills::a_fan_out_cut_by_a_stop_goes_on_elsewhere,
        broker::connections_closed_and_queues_deleted_lose_nothing_accepted_afterwards,
        broker::a_memory_alarm_refuses_and_then_resumes,
        broker::attempts_wait_for_their_records_while_rabbitmq_hangs,
        broker::deliveries_go_on_while_the_stream_of_attempts_is_stuck,
        broker::retries_go_round_where_the_way_back_is_blocked,
        broker::nobody_gets_the_confirm_of_another_message,
        broker::a_refusal_is_answered_with_another_channel,
        broker::a_connection_that_a_stuck_queue_stops_is_not_ready,
        broker::services_that_stop_say_goodbye_to_rabbitmq,
        broker::a_connection_that_rabbitmq_does_not_let_go_is_left,
        broker::a_broker_killed_with_retries_waiting_loses_none,
        rotation::every_post_verifies_with_either_secret,
        rotation::a_public_key_verifies_and_rotates_with_the_secret,
        patterns::our_matcher_agrees_with_rabbitmq,
        logs::nothing_waits_for_whoever_takes_them,
        rights::services_and_publishers_need_few,
        rights::what_is_missing_is_said,
        rights::what_others_publish_to_is_there_last,
        deployments::everything_works_over_tls,
        deployments::everything_works_on_a_redis_cluster,
        deployments::a_redis_cluster_that_loses_its_masters_loses_nothing,
        deployments::a_redis_cluster_whose_keys_move_loses_nothing,
        deployments::everything_works_without_the_plugin,
        deployments::several_retry_schedulers_share_the_work,
        interop::python_publishes_and_verifies,
        interop::node_publishes_and_verifies,
        interop::the_rust_example_publishes,
    ]
}
