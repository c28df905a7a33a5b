"""RELIABILITY.md §5: messages (M), price books (B), grants (G), files and URLs (U), the command (C), settings (K).

Every numbered case has its tests; those of the API (A) stand in `integration/test_api_bad_inputs.py`. Where we answer
otherwise than that page has it, the row says how.
"""

from __future__ import annotations

from tests.cases import missing

QUEUE = "integration/test_queue_consumer.py"
BOOK = "unit/credits/test_price_book.py"
PRICES = "integration/test_cli_prices.py"
TYPED = "integration/test_cli_bad_input.py::test_what_can_not_be_is_refused"
STRANGERS = f"{QUEUE}::test_a_stranger_in_the_queue_is_put_aside_and_its_neighbours_run"
BAD_BOOK = f"{BOOK}::test_a_bad_book_is_refused_with_table_key_and_reason"
PROBE = "unit/tasks/test_probe.py"
SETTINGS = "unit/config/test_settings.py"
HOOKS = "unit/test_webhooks.py"

CASES: dict[str, tuple[str, ...]] = {
    # messages in Redis
    **{f"M{number}": (STRANGERS,) for number in range(1, 9)},
    "M9": (STRANGERS, "integration/test_queue_hints.py::test_pickled_bytes_are_not_run"),
    "M10": (STRANGERS, "integration/test_queue_hints.py::test_no_bytes_make_decoding_fail"),
    "M11": (f"{QUEUE}::test_options_of_a_message_are_not_obeyed",),
    "M12": ("integration/test_books.py::test_a_hint_for_a_job_that_is_not_queued_changes_nothing",),
    "M13": (f"{QUEUE}::test_a_thousand_copies_of_a_message_are_a_thousand_looks",),
    "M14": (f"{QUEUE}::test_a_message_of_another_queue_is_handed_on",),
    "M15": (f"{QUEUE}::test_ids_without_a_message_and_messages_without_an_id_harm_nobody",),
    # not signed: a forged hint costs a look at a row
    "M16": ("unit/test_fuzz.py::test_any_field_of_a_message_is_what_it_must_be",),
    "M17": (f"{QUEUE}::test_a_thousand_copies_of_a_message_are_a_thousand_looks",),
    # price books
    "B1": (BAD_BOOK,),
    # by percentage, and what confirms it is a rehearsal of that very document, or a reason that is kept
    "B2": ("integration/test_rehearsals.py::test_a_large_change_needs_a_rehearsal_of_this_very_document",),
    "B3": (BAD_BOOK,),
    "B4": (f"{BOOK}::test_each_kind_has_its_table_and_no_other",),
    "B5": (
        f"{PRICES}::test_a_time_that_can_not_be_is_refused",
        "integration/test_roles.py::test_no_book_in_force_is_withdrawn_and_none_is_brought_or_dated_back",
    ),
    # a book is whole and in force until the next: there is no gap to leave
    "B6": (f"{PRICES}::test_a_time_that_can_not_be_is_refused", f"{PRICES}::test_a_book_may_be_planned"),
    # both are kept, numbered in turn; the second needs no expected version, for each says all prices
    "B7": (f"{PRICES}::test_books_applied_at_once_are_numbered_in_turn",),
    "B8": (f"{BOOK}::test_each_kind_has_its_table_and_no_other",),
    "B9": (f"{PRICES}::test_a_time_that_can_not_be_is_refused",),
    "B10": (f"{PRICES}::test_a_time_that_can_not_be_is_refused",),
    "B11": (BAD_BOOK,),
    # TOML has no tags; what could be run stays text
    "B12": ("unit/test_fuzz.py::test_any_price_book_is_whole_or_refused",),
    "B13": (BAD_BOOK, f"{PRICES}::test_a_bad_book_is_refused_as_a_whole"),
    "B14": (
        "integration/test_roles.py::test_the_worker_sets_no_price_and_sells_nothing",
        "integration/test_api_roles.py::test_every_role_meets_its_doors",
    ),
    "B15": ("integration/test_api_guard.py::test_a_key_has_its_share_of_a_minute",),
    # grants, subscriptions, top-ups
    "G1": (TYPED, "integration/test_accounts.py::test_only_whole_credits_within_bounds_come_in"),
    "G2": (
        "integration/test_accounts.py::test_one_purchase_told_twenty_times_at_once_is_one_lot",
        "integration/test_accounts.py::test_a_reference_with_another_amount_is_a_conflict",
    ),
    "G3": (TYPED, "integration/test_accounts.py::test_what_cannot_be_done_says_why"),
    "G4": ("integration/test_subscriptions.py::test_a_cycle_that_is_on_record_is_not_granted_again",),
    "G5": (
        "unit/credits/test_cycles.py::test_cycles_begin_on_the_day_of_the_anchor_or_the_last_day_of_a_shorter_month",
        "unit/credits/test_cycles.py::test_times_that_are_not_utc_or_before_the_anchor_are_refused",
    ),
    "G6": ("integration/test_subscriptions.py::test_an_upgrade_counts_at_once_and_a_downgrade_from_the_next_cycle",),
    # a job is never refunded by hand; what was charged is compensated
    "G7": (
        "integration/test_compensations.py::test_no_job_gives_back_more_than_it_took",
        "integration/test_compensations.py::test_the_same_reference_is_one_compensation",
    ),
    "G8": (TYPED, "integration/test_accounts.py::test_who_did_it_can_be_written_down"),
    # frozen, not refused: they are paid for, and the refusal of the job names them
    "G9": ("integration/test_refusals.py::test_a_refusal_names_what_is_frozen",),
    "G10": ("integration/test_books.py::test_a_job_started_before_its_lot_expired_is_paid_by_it",),
    # audio, URLs, files
    "U1": (
        f"{PROBE}::test_devices_sockets_and_odd_paths_are_refused",
        "integration/test_cli_bad_input.py::test_a_file_that_can_not_be_used_leaves_nothing",
    ),
    "U2": ("integration/test_cli_bad_input.py::test_no_words_of_a_customer_become_a_path",),
    # inputs are artifact ids; the URLs that we do call are webhooks' and providers'
    "U3": (
        f"{HOOKS}::test_what_is_not_on_the_internet_is_told_nothing",
        "unit/test_fuzz.py::test_no_spelling_of_a_private_address_is_told_anything",
        "integration/test_webhooks.py::test_the_connection_goes_to_the_address_that_was_checked",
    ),
    "U4": (
        f"{HOOKS}::test_what_can_be_no_endpoint_is_refused",
        "integration/test_webhooks.py::test_a_bad_answer_is_a_failed_try",
        "unit/tasks/test_remote.py::test_a_name_that_leads_to_a_private_address_is_not_followed",
    ),
    "U5": (f"{HOOKS}::test_what_can_be_no_endpoint_is_refused",),
    "U6": (
        "integration/test_api_guard.py::test_a_body_that_trickles_is_given_up",
        "integration/test_api_artifacts.py::test_a_body_without_a_length_is_cut_at_the_limit",
        "integration/test_webhooks.py::test_an_answers_body_is_never_read",
    ),
    "U7": ("integration/test_webhooks.py::test_the_connection_goes_to_the_address_that_was_checked",),
    "U8": (
        f"{PROBE}::test_a_header_that_lies_is_refused",
        f"{PROBE}::test_what_says_more_than_it_holds_never_reaches_memory",
        "unit/test_fuzz.py::test_any_audio_file_is_measured_or_refused",
    ),
    "U9": (f"{PROBE}::test_a_file_that_breaks_its_decoder_is_refused",),
    "U10": (f"{PROBE}::test_a_small_file_that_expands_stops_at_the_limit",),
    "U11": (f"{PROBE}::test_what_is_no_sound_is_refused", f"{PROBE}::test_formats_outside_the_list_are_refused"),
    "U12": (f"{PROBE}::test_silence_clipping_and_a_single_frame_are_sound", f"{PROBE}::test_samples_must_be_sound"),
    # archives are no audio
    "U13": (f"{PROBE}::test_an_archive_is_not_unpacked",),
    "U14": (
        f"{PROBE}::test_a_file_that_changes_while_it_is_read_is_refused",
        "unit/test_artifacts.py::test_a_damaged_input_is_called_one",
    ),
    "U15": ("integration/test_api_artifacts.py::test_the_audio_of_others_is_not_there",),
    # the command
    "C1": (TYPED,),
    # what concerns many jobs says what it would do, and does it only when told again
    "C2": ("integration/test_steering.py::test_many_are_cancelled_by_a_filter_after_a_look",),
    "C3": ("integration/test_cli_jobs.py::test_a_cancelled_job_ends_at_once_and_only_once",),
    "C4": ("integration/test_cli_process.py::test_a_reader_that_goes_away_is_no_error",),
    # no verb reads ids from a file; ids with anything around them are refused
    "C5": (TYPED,),
    # settings
    "K1": (
        f"{SETTINGS}::test_a_contradiction_names_both_sides",
        f"{SETTINGS}::test_every_number_has_bounds_that_hold",
    ),
    "K2": (f"{SETTINGS}::test_a_misspelt_variable_is_refused_by_name",),
    "K3": (f"{SETTINGS}::test_a_bad_value_is_named_and_never_shown",),
    "K4": (f"{SETTINGS}::test_secrets_stay_out_of_every_representation",),
    # there is no signing key or pepper to set: keys are 32 random bytes, kept as hashes
    "K5": ("integration/test_keys.py::test_a_key_is_kept_as_a_hash_and_opens",),
    # in production; elsewhere `doctor` warns
    "K6": (
        f"{SETTINGS}::test_a_contradiction_names_both_sides",
        f"{SETTINGS}::test_just_beside_a_contradiction_is_fine",
        "integration/test_driver.py::test_a_server_that_does_not_encrypt_is_not_spoken_to",
        "integration/test_doctor.py::test_unwise_settings_are_warned_of",
    ),
    # no .env is read; the file that `up` leaves is not used when others can read it
    "K7": (
        "integration/test_cli_process.py::test_a_file_that_others_can_read_is_not_used",
        f"{SETTINGS}::test_a_file_that_holds_no_secret_is_refused",
    ),
    "K8": (
        "integration/test_cli_process.py::test_settings_that_can_not_be_are_named",
        "integration/test_cli_process.py::test_in_production_nothing_starts_on_a_clock_that_can_be_set",
    ),
    # not refused: hints of another environment name jobs that are not here, and are dropped
    "K9": ("integration/test_books.py::test_a_hint_for_a_job_that_is_not_queued_changes_nothing",),
}
LISTS = {"M": 17, "B": 15, "G": 10, "U": 15, "C": 5, "K": 9}


def test_every_case_has_a_test() -> None:
    """Whoever renames a test or drops a row hears of it here."""
    assert {f"{letter}{number}" for letter, last in LISTS.items() for number in range(1, last + 1)} == CASES.keys()
    assert [] == missing(place for places in CASES.values() for place in places)
