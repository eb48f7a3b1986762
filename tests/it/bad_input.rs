//! Bad input, in one table: what can be sent to a broker that should not be, and what it answers. The numbers are those of the list
//! of attacks that the table was made from. Every row is sent to a running broker over both stores, or names the test that shows it,
//! or says what of it is not there yet. Afterwards nothing is lost: what was there before still works, and nothing came of it.

mod anywhere;
mod bench;
mod forge;
mod limits;
mod locks;
mod tokens;
mod workloads;

use serde_json::{Value, json};
use std::{collections::BTreeSet, path::Path};

use crate::{
    both,
    support::{Stand, Store},
};
use bench::{Bench, Case};

/// How a row is shown.
enum By {
    /// Requests to a running broker.
    Live(fn(&Bench) -> Vec<Case>),
    /// A test of its own: `file::test` in here, or `remit::module::test` among the sources.
    Shown(&'static str),
    /// This of it is not there yet. Where it is an endpoint, a live row sees that it is not, so that it cannot come without its row.
    NotYet(&'static str),
}

use By::{Live, NotYet, Shown};

/// The number of an attack, what it is, and by what it is shown.
type Row = (u16, &'static str, &'static [By]);

/// The attacks that the table is about.
const LISTED: &[u16] = &[
    1, 2, 3, 4, 5, 6, 7, 8, 11, 14, 15, 16, 18, 19, 20, 21, 22, 26, 27, 29, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41,
    42, 43, 44, 45, 46, 47, 48, 49, 57, 61, 62, 63, 65, 67, 70, 71, 72, 73, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86,
    87, 88, 89, 91, 92, 93, 107, 108, 109, 110, 111, 112, 113, 114, 117,
];

const ROWS: &[Row] = &[
    (
        1,
        "a body that is too large, or has no end",
        &[Live(anywhere::a_body_too_large), Shown("attacks::a_body_without_end_disturbs_nobody")],
    ),
    (
        2,
        "JSON that is deep, wide or long",
        &[Live(anywhere::json_that_costs), Shown("attacks::what_is_large_is_refused_and_not_feared")],
    ),
    (
        3,
        "a member or a parameter that is there twice",
        &[Live(anywhere::members_twice), Live(anywhere::parameters_twice)],
    ),
    (4, "octets that are no text", &[Live(anywhere::octets_that_are_no_text)]),
    (
        5,
        "another content type, another method, more after the end",
        &[Live(anywhere::another_content_type), Live(anywhere::another_method), Live(anywhere::more_or_less_than_json)],
    ),
    (
        6,
        "a request that can be read in two ways",
        &[
            Live(anywhere::two_ways_to_read_one_request),
            Shown("attacks::nothing_is_smuggled_in"),
            NotYet("a line that ends without a carriage return is a line (RFC 9112 section 2.2 leaves that open)"),
            NotYet(
                "with a length and chunks the chunks count, and what came in them is carried out before the connection closes",
            ),
        ],
    ),
    (7, "a path that is written to lead elsewhere", &[Live(anywhere::paths_that_lead_elsewhere)]),
    (
        8,
        "a token in more than one place",
        &[
            Live(anywhere::two_bearers),
            Live(anywhere::two_bearers_that_ask),
            Shown("oidc::one_authorization_header_with_one_bearer_token"),
        ],
    ),
    (11, "a head that is too large", &[Live(anywhere::a_head_too_large)]),
    (
        14,
        "text that plays with a log or a terminal",
        &[
            Live(anywhere::text_for_logs),
            Shown("remit::audit::writer::tests::no_text_makes_a_second_line"),
            Shown("remit::cli::show::tests::what_an_agent_declared_cannot_play_with_the_terminal"),
            Shown("metrics::labels_hold_nothing_of_a_caller"),
        ],
    ),
    (
        15,
        "no TLS, an old one or a weak one on the TLS listener",
        &[
            Shown("tls::what_is_no_tls_is_refused_without_harm"),
            Shown("tls::tls_1_3_alone_unless_the_configuration_says_more"),
            Shown("tls::tls_1_2_by_configuration_without_its_weak_suites"),
            Shown("tls::any_certificate_may_be_shown_by_whoever_holds_its_key"),
        ],
    ),
    (16, "a TLS session that is resumed after a change", &[Shown("tls::no_session_is_resumed")]),
    (
        18,
        "a nonce that is missing, was not given out, or was long ago",
        &[
            Shown("dpop::a_required_nonce_is_given_and_asked_for"),
            Shown("dpop::a_nonce_of_long_ago_is_asked_for_anew"),
            NotYet(
                "a nonce is nobody's own: a proof with one that another caller was given is taken, for its key is what counts",
            ),
        ],
    ),
    (
        19,
        "evidence for another audience",
        &[Live(workloads::evidence_for_another), Shown("oidc::claims_are_required_and_typed")],
    ),
    (
        20,
        "one thing that is signed, and another one that is read",
        &[
            Live(tokens::members_twice),
            Live(tokens::other_writings),
            Live(tokens::base64),
            Shown("oidc::a_token_has_one_way_to_be_written"),
            Shown("x509::a_name_that_cannot_be_read_is_a_name"),
            Shown("x509::what_is_no_svid_of_the_trust_domain_is_refused"),
        ],
    ),
    (
        21,
        "a genuine certificate beside one that it did not sign",
        &[
            Shown("x509::authorities_below_the_bundle"),
            Shown("x509::what_is_no_svid_of_the_trust_domain_is_refused"),
            Shown("x509::a_chain_of_many_paths_is_not_walked"),
        ],
    ),
    (
        22,
        "evidence without the key that is certified",
        &[
            Shown("certificates::a_request_is_its_key_and_the_proof_that_it_is_held"),
            Shown("dpop::evidence_serves_the_first_key"),
            Shown("mtls::evidence_serves_the_key_that_it_came_with"),
        ],
    ),
    (
        26,
        "a certificate that costs a lot to look at",
        &[
            Shown("x509::expensive_certificates_are_turned_away_early"),
            Shown("x509::a_chain_of_many_paths_is_not_walked"),
            Shown("remit::attest::svid::tests::a_chain_costs_few_signatures_whatever_is_in_it"),
            Shown("remit::attest::svid::tests::what_is_refused_at_sight_costs_none"),
            Shown("remit::attest::svid::tests::many_authorities_of_one_name_are_bounded_too"),
        ],
    ),
    (27, "evidence from another time", &[Live(workloads::evidence_from_another_time)]),
    (
        29,
        "evidence of a kind that nobody knows",
        &[
            Live(workloads::evidence_of_an_unknown_kind),
            Shown("remit::attest::config::tests::the_sections_are_strict"),
            Shown("start::a_bad_configuration_is_refused_in_one_sentence"),
        ],
    ),
    (31, "a scope or privilege that is none, is not granted, or is everything", &[Live(workloads::scopes)]),
    (32, "a service that is none, is written otherwise, or is two", &[Live(workloads::targets)]),
    (
        33,
        "a lifetime that is none, or is beyond any bound",
        &[Live(workloads::lifetimes), Shown("mint::a_lifetime_is_bounded")],
    ),
    (
        34,
        "an id that the caller made",
        &[Live(workloads::ids_of_ones_own), Shown("attacks::a_path_leads_to_one_place")],
    ),
    (
        35,
        "details of another type or shape",
        &[Live(workloads::one_detail), Live(workloads::lists_of_details), Shown("declare::bad_declarations")],
    ),
    (
        36,
        "what policy denies",
        &[
            Live(workloads::what_policy_denies),
            Shown("audit::a_refused_declaration_is_on_record_with_the_policies_that_refused_it"),
        ],
    ),
    (
        37,
        "a policy that errs",
        &[
            Shown("policy::an_evaluation_that_errs_mints_nothing"),
            Shown("remit::policy::tests::an_evaluation_that_errs_is_no_decision"),
        ],
    ),
    (
        38,
        "a task that is over, or ends in this moment",
        &[Live(workloads::what_is_over), Shown("revoke::a_mint_that_races_a_revoke")],
    ),
    (
        39,
        "an `Idempotency-Key` with something else under it",
        &[
            Live(workloads::a_key_used_again),
            Shown("declare::a_retry_under_the_same_key_is_the_same_task"),
            Shown("oauth::a_retry_declares_once"),
        ],
    ),
    (
        40,
        "too much of something",
        &[
            Shown("watch::not_everybody_can_watch_at_once"),
            Shown("bad_input::made_up_ids_are_recorded_a_hundred_a_minute"),
            NotYet("tasks and leases of one workload are not counted against a bound"),
        ],
    ),
    (
        41,
        "a certificate request that asks for what policy does not give",
        &[
            Shown("certificates::a_request_is_its_key_and_the_proof_that_it_is_held"),
            Shown("certificates::a_certificate_says_what_it_must"),
            Shown("certificates::policy_has_to_allow_all_of_the_task"),
        ],
    ),
    (
        42,
        "a certificate request for a key that is weak, the broker's own, or not the requester's",
        &[
            Shown("certificates::a_request_is_its_key_and_the_proof_that_it_is_held"),
            Shown("certificates::a_key_of_a_revoked_task_is_not_certified_again"),
            Shown("certificates::a_key_serves_so_many_tasks"),
            Shown("certificates::a_key_that_is_known_to_have_leaked_is_not_certified"),
        ],
    ),
    (
        43,
        "a SPIFFE ID that is none",
        &[
            Live(locks::names_that_are_none),
            Shown("remit::id::tests::malformed_names_are_refused"),
            Shown("x509::what_is_no_svid_of_the_trust_domain_is_refused"),
            Shown("x509::a_jwt_svid_is_evidence_where_the_attestor_has_an_audience"),
            Shown("oidc::claims_become_workloads_unchanged_or_not_at_all"),
        ],
    ),
    (
        44,
        "a proof of possession that does not fit",
        &[
            Shown("dpop::a_proof_that_does_not_fit_is_refused"),
            Shown("dpop::a_proof_serves_once"),
            Shown("dpop::a_service_that_says_nothing_gets_bound_tokens_alone"),
            Shown("dpop::a_required_nonce_is_given_and_asked_for"),
            Shown("dpop::proofs_and_evidence_are_remembered_by_all_brokers"),
        ],
    ),
    (45, "the id of a proof that somebody else used up", &[Shown("dpop::a_proof_serves_once")]),
    (
        46,
        "a client's assertion for another, without an end, used before, or with another algorithm",
        &[
            Shown("client_assertion::an_assertion_that_does_not_fit_is_refused"),
            Shown("client_assertion::a_client_works_with_its_assertions"),
        ],
    ),
    (
        47,
        "a grant that is unknown, switched off or there twice",
        &[Live(workloads::grants), Shown("mint::the_token_endpoint_speaks_oauth")],
    ),
    (
        48,
        "an audit log that takes nothing",
        &[
            Shown("audit::a_log_that_takes_nothing_stops_the_broker"),
            Shown("metrics::an_audit_log_that_takes_nothing_is_named_and_counted"),
            Shown("remit::audit::writer::tests::a_full_disk_refuses_and_recovers"),
            Shown("remit::audit::writer::tests::a_failed_sync_is_final"),
            Shown("evidence::a_revoke_is_recorded_on_a_full_disk"),
            Shown("evidence::no_segment_is_begun_on_a_full_disk"),
        ],
    ),
    (
        49,
        "a store in doubt",
        &[
            Shown("store::a_store_out_of_reach_is_503_and_inactive"),
            Shown("store::a_flushed_store_denies"),
            Shown("remit::lease::tests::each::without_memory_an_end_still_works_and_a_mint_does_not"),
            Shown("remit::lease::tests::each::a_redis_that_hangs_is_in_doubt_soon"),
            Shown("journal::an_end_that_redis_lost_is_told_again"),
            Shown("feed::what_no_replica_has_is_not_vouched_for"),
            Shown("generation::a_store_of_an_earlier_generation_is_left_behind"),
            Shown("members::one_that_hangs_is_waited_for_and_what_it_knew_holds"),
            Shown("members::what_one_knew_that_is_gone_ends_with_its_generation"),
        ],
    ),
    (
        57,
        "a token that was stolen, with the key of the thief",
        &[
            Shown("task_token::it_serves_its_holder_and_its_task_alone"),
            Shown("dpop::evidence_serves_the_first_key"),
            NotYet("nothing is delegated"),
        ],
    ),
    (
        61,
        "a revoke of what is revoked or unknown",
        &[
            Live(workloads::revoked_again),
            Live(workloads::revocations_of_tokens),
            Shown("revoke::an_unseen_id_can_be_revoked_by_an_operator_only"),
            Shown("leases::a_workload_revokes_a_token_of_its_own"),
        ],
    ),
    (
        62,
        "a revoke of another's task",
        &[
            Live(workloads::what_is_anothers),
            Shown("attacks::an_id_is_not_a_capability"),
            NotYet("no task has children, so that none can end its parent"),
        ],
    ),
    (63, "an id out of a log as a key", &[Live(workloads::ids_as_keys), Shown("attacks::an_id_is_not_a_capability")]),
    (
        65,
        "a hint that is wrong",
        &[
            Live(workloads::hints),
            Live(workloads::revocations_of_tokens),
            Shown("leases::a_workload_revokes_a_token_of_its_own"),
        ],
    ),
    (
        67,
        "questions about tokens that are not the caller's business",
        &[
            Live(workloads::questions_about_tokens),
            Shown("introspect::there_is_one_inactive_answer"),
            Shown("introspect::only_services_and_operators_ask"),
            NotYet("that the answers take the same time is not measured"),
        ],
    ),
    (
        70,
        "a revocation list that is none, or is another's",
        &[NotYet(
            "nothing in here reads a revocation list or asks OCSP: other verifiers read ours, and evidence by certificate is not looked up in any",
        )],
    ),
    (71, "a key id that is a path, a query, an address", &[Live(tokens::key_ids)]),
    (
        72,
        "a flood of unknown key ids",
        &[
            Shown("jwks::a_flood_of_unknown_keys_costs_one_fetch_per_interval"),
            Shown("remit::attest::keys::tests::an_unknown_key_costs_one_fetch_per_interval"),
            Shown("jwks::a_flood_of_tokens_under_unknown_keys_costs_the_store_one_search_a_second"),
            Shown("remit::verify::follow::tests::unknown_keys_fetch_no_more_than_once_in_a_while"),
        ],
    ),
    (
        73,
        "a set of keys with one that should not be in it",
        &[
            Shown("remit::attest::jwks::tests::one_bad_key_refuses_the_set"),
            Shown("jwks::what_cannot_be_trusted_to_be_the_keys_is_not_used"),
            Shown("bad_input::the_brokers_own_keys_are_public_and_nothing_else"),
            Shown("remit::rsa::tests::a_key_that_can_be_taken_apart_is_told"),
        ],
    ),
    (76, "no algorithm", &[Live(tokens::no_algorithm), Shown("oidc::a_token_chooses_neither_key_nor_algorithm")]),
    (
        77,
        "a public key as a secret",
        &[Live(tokens::a_public_key_as_a_secret), Shown("rs256::a_key_serves_its_own_algorithm_alone")],
    ),
    (78, "a signature that is none", &[Live(tokens::signatures)]),
    (79, "a key in the token", &[Live(tokens::keys_in_the_token)]),
    (80, "extensions that must be understood", &[Live(tokens::extensions)]),
    (81, "another way to write it", &[Live(tokens::other_writings), Shown("oidc::a_token_has_one_way_to_be_written")]),
    (82, "what is encrypted or packed", &[Live(tokens::what_is_encrypted_or_packed)]),
    (83, "another way to write the octets", &[Live(tokens::base64)]),
    (84, "a member of a token that is there twice", &[Live(tokens::members_twice)]),
    (85, "times that are none", &[Live(tokens::times), Shown("oidc::claims_are_required_and_typed")]),
    (86, "an audience or an issuer that looks alike", &[Live(tokens::audiences_and_issuers)]),
    (
        87,
        "one kind of token for another",
        &[
            Live(tokens::one_kind_for_another),
            Shown("oidc::a_credential_is_no_evidence"),
            Shown("introspect::one_kind_is_never_accepted_as_another"),
            Shown("status_list::a_list_is_no_token_and_a_token_no_list"),
            Shown("dpop::a_proof_that_does_not_fit_is_refused"),
            Shown("task_token::it_serves_its_holder_and_its_task_alone"),
            Shown("feed::a_state_is_no_token"),
        ],
    ),
    (
        88,
        "a bound token without its key",
        &[
            Shown("dpop::a_bound_token_serves_its_holder_alone"),
            Shown("dpop::clients_that_are_not_ours_prove_possession"),
        ],
    ),
    (
        89,
        "a token that is bound to a certificate, over another connection",
        &[
            Shown("mtls::a_bound_token_is_accepted_with_its_certificate_alone"),
            Shown("mtls::evidence_serves_the_key_that_it_came_with"),
            Shown("x509::an_explicit_authorization_beats_the_certificate"),
        ],
    ),
    (91, "a token that is too long", &[Live(tokens::long_tokens)]),
    (
        92,
        "what a verifier knows is too old, or of another generation",
        &[
            Shown("remit::verify::feed::tests::every_vector_is_answered_as_it_has_to_be"),
            Shown("remit::verify::feed::tests::a_set_that_was_left_halfway_accepts_nothing"),
            Shown("remit::verify::follow::tests::a_broker_that_falls_silent_is_left_and_nothing_accepted"),
            Shown("remit::verify::follow::tests::a_broker_that_was_rolled_back_is_believed_in_the_next_generation"),
            Shown("remit::verify::layer::tests::what_was_revoked_is_refused_and_what_cannot_be_told_is_for_later"),
        ],
    ),
    (
        93,
        "a certificate that is none of a workload that is known",
        &[
            Shown("x509::what_is_no_svid_of_the_trust_domain_is_refused"),
            Shown("x509::authorities_below_the_bundle"),
            Shown("remit::verify::feed::tests::what_is_no_certificate_of_a_task_is_refused"),
        ],
    ),
    (
        107,
        "what operators do, done by others",
        &[
            Live(workloads::what_operators_do),
            Shown("operators::everybody_on_the_embedded_store"),
            Shown("people::a_token_that_is_not_good_makes_nobody_an_operator"),
            Shown("people::what_only_looks_like_a_role_brings_none"),
            Shown("people::one_is_never_the_other"),
            Shown("people::a_session_that_is_over_sees_nothing_more"),
            Shown("owners::whoever_acts_for_an_owner_has_that_owners_tasks"),
            Shown("refused::services_and_owners_that_ask_for_what_is_not_for_them"),
            Shown("party_certificates::a_token_is_worth_nothing_without_the_certificate_beside_it"),
            Shown("party_certificates::an_operator_is_known_by_a_certificate"),
        ],
    ),
    (108, "an approval by one where two are asked for, or by whoever asks", &[NotYet("there are no approvals")]),
    (
        109,
        "a role or a policy that somebody gives themselves",
        &[
            Live(workloads::what_would_change_the_rules),
            Shown("operators::nothing_that_can_be_called_says_who_may_do_what"),
            Shown("people::what_only_looks_like_a_role_brings_none"),
        ],
    ),
    (
        110,
        "an audit log that goes elsewhere, or a program that is run",
        &[
            Live(workloads::what_would_move_the_record),
            Shown("operators::nothing_that_can_be_called_says_who_may_do_what"),
        ],
    ),
    (
        111,
        "what an unknown caller could begin, stop or measure",
        &[
            Live(workloads::what_nobody_may_begin),
            Shown("refused::nobody_fills_the_log_by_asking"),
            Shown("trail::a_look_ends_in_time_and_with_whoever_waits_for_it"),
            // Everybody may see them, and they tell nothing of anybody.
            Shown("metrics::labels_hold_nothing_of_a_caller"),
        ],
    ),
    (
        112,
        "a start on what is not safe",
        &[
            Shown("store::an_unsafe_redis_is_refused_at_start"),
            Shown("remit::lease::redis::connect::tests::a_redis_that_could_forget_is_refused"),
            Shown("remit::lease::redis::connect::tests::another_machine_is_reached_by_tls_and_password_alone"),
            Shown("remit::secret_file::tests::a_secret_that_others_can_read_is_refused"),
            Shown("remit::config::tests::every_unsafe_setting_is_told"),
            Shown("start::a_bad_configuration_is_refused_in_one_sentence"),
        ],
    ),
    (
        113,
        "a record that was altered, moved or brought back",
        &[
            Shown("store::a_record_that_was_tampered_with_is_refused"),
            Shown("remit::lease::record::tests::any_changed_byte_is_refused"),
            Shown("remit::lease::record::tests::a_record_belongs_to_one_key_type_and_generation"),
            Shown("evidence::whatever_is_done_to_the_log_shows"),
            Shown("evidence::a_log_that_is_not_the_one_that_was_written_is_not_written_on"),
            Shown("evidence::a_tail_that_is_not_known_is_marked"),
            Shown("members::one_that_joins_takes_over_what_is_dead"),
            Shown("members::what_is_taken_out_of_the_log_shows_and_is_asked_for"),
            Shown("members::what_was_taken_away_of_one_that_is_gone_ends_with_its_generation"),
            Shown("members::what_a_broker_says_cannot_be_put_back"),
            NotYet("whoever sets back the counter of the status lists is not found out"),
        ],
    ),
    (
        114,
        "a record that is none, or is without bound",
        &[
            Shown("store::a_record_that_was_tampered_with_is_refused"),
            Shown("remit::lease::record::tests::a_body_is_bounded"),
            Shown("remit::lease::tests::each::numbers_that_nothing_counted_are_no_numbers"),
            Shown("remit::lease::tests::each::a_counter_that_is_none_does_not_keep_a_task_alive"),
            NotYet("a value of hundreds of megabytes is read whole before it is refused for its length"),
        ],
    ),
    // From here on they are our own.
    (
        117,
        "a lock that is none, names others than it seems to, or is not the caller's to set or release",
        &[
            Live(locks::what_is_no_lock),
            Live(locks::whom_a_lock_names),
            Live(locks::who_locks_and_releases),
            Shown("locks::bad_locks_are_refused"),
        ],
    ),
];

both! {
    /// Everything that is wrong with a row is told at once.
    async fn every_row_has_its_answer_and_nothing_is_lost(stand) {
        let (mut bench, mut wrong) = (Bench::new(stand).await, Vec::new());
        for (row, attack, by) in ROWS {
            let live = by.iter().filter_map(|by| if let Live(cases) = by { Some(cases(&bench)) } else { None });
            let live: Vec<Case> = live.flatten().collect();
            for case in &live {
                wrong.extend(bench.wrong(case).await.map(|wrong| format!("row {row}, {attack}: {wrong}")));
            }
            if !live.is_empty() {
                wrong.extend(bench.lost().await.map(|lost| format!("row {row}, {attack}: afterwards, {lost}")));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        bench.end().await;
    }
}

/// A revoke may overtake the first issue of its task, and still nobody fills the store with ids of their own.
#[tokio::test]
async fn made_up_ids_are_recorded_a_hundred_a_minute() {
    let stand = Stand::new(Store::Embedded).await;
    let (task, token) = stand.task_with_token().await;
    let mut recorded = 0;
    let refused = loop {
        let answer = stand.revoke(&format!("task_01jd{recorded:022}")).await;
        if answer.status != 200 {
            break answer;
        }
        recorded += 1;
        assert!(recorded <= 200, "there is no bound");
    };
    // Up to two minutes that begin in between.
    assert!(recorded >= 100);
    assert!(refused.headers.contains_key("retry-after"));
    refused.refused(429, "quota_exceeded");
    // What is known can be revoked all the same.
    stand.revoke(&task).await.expect(reqwest::StatusCode::OK);
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
}

/// What is published holds no half that should stay at home, and nothing that could be taken for another key.
#[tokio::test]
async fn the_brokers_own_keys_are_public_and_nothing_else() {
    let stand = Stand::new(Store::Embedded).await;
    for (path, usages) in [("/jwks", &["sig"][..]), ("/spiffe/bundle", &["jwt-svid", "x509-svid"])] {
        let answer = stand.client.get(stand.url(path)).send().await.expect("an answer");
        let document: Value = answer.json().await.expect("JSON");
        let keys = document["keys"].as_array().expect("keys");
        let named: Vec<_> = keys.iter().filter(|key| key["use"] != "x509-svid").collect();
        let kids: BTreeSet<_> = named.iter().map(|key| key["kid"].as_str().expect("a key id")).collect();
        assert!(!named.is_empty() && kids.len() == named.len(), "{document}");
        for key in keys {
            assert_eq!((&key["kty"], &key["crv"]), (&json!("EC"), &json!("P-256")), "{key}");
            assert!(usages.contains(&key["use"].as_str().expect("a use")), "{key}");
            let members: BTreeSet<&str> = key.as_object().expect("a key").keys().map(String::as_str).collect();
            let known = BTreeSet::from(["kty", "crv", "x", "y", "kid", "use", "alg", "remit_purpose", "x5c"]);
            assert!(members.is_subset(&known), "{key}");
        }
    }
}

#[test]
fn every_attack_is_in_the_table_once() {
    let rows: Vec<_> = ROWS.iter().map(|(row, ..)| *row).collect();
    assert_eq!(rows, LISTED);
    assert!(rows.is_sorted_by(|a, b| a < b));
    for (row, attack, by) in ROWS {
        assert!(!attack.is_empty() && !by.is_empty(), "row {row}");
    }
}

/// A test that a row relies on is still there under its name.
#[test]
fn what_rows_rely_on_is_there() {
    for (row, _, by) in ROWS {
        for by in *by {
            match by {
                Shown(path) => assert!(is_test(path), "row {row}: there is no test `{path}`"),
                NotYet(what) => assert!(what.len() > 10, "row {row}: what is missing is not said"),
                Live(_) => {}
            }
        }
    }
    assert!(!is_test("store::no_such_test") && !is_test("store::ready") && !is_test("no_such_module::no_such_test"));
}

/// Whether a path names a test.
fn is_test(path: &str) -> bool {
    let Some((module, name)) = path.rsplit_once("::") else { return false };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (base, module) =
        module.strip_prefix("remit::").map_or((root.join("tests/it"), module), |module| (root.join("src"), module));
    // Tests stand in a file of their own, or at the end of what they are about.
    let short = module.strip_suffix("::tests").unwrap_or(module);
    let file = |module: &str, end: &str| base.join(module.replace("::", "/") + end);
    let files = [file(module, ".rs"), file(short, ".rs"), file(short, "/mod.rs")];
    files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).any(|text| {
        let Some((before, _)) = text.split_once(&format!("fn {name}(")) else { return false };
        let mut above = before.trim_end().trim_end_matches("async").trim_end().lines().rev();
        let marked = above
            .find(|line| !line.trim_start().starts_with("///"))
            .is_some_and(|line| line.contains("#[test]") || line.contains("#[tokio::test"));
        // In the macro that makes tests over both stores, every function is one.
        let listed = before.rsplit_once("both! {").is_some_and(|(_, since)| !since.contains("\n}"));
        marked || listed
    })
}
