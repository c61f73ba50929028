"""Two and four ranks of gloo against one process on the whole batch; each test is a function of its name there."""

from collections.abc import Callable

import pytest

SHORT = [
    "eager_ranks_with_whole_parameters_step_as_one_process",
    "eager_ranks_with_parts_of_parameters_step_as_one_process",
    "a_nan_on_one_rank_is_an_error_on_all_that_names_it",
    "a_wrong_batch_on_one_rank_is_an_error_on_all_and_the_next_one_trains",
    "several_processes_without_a_mesh_are_refused",
    "a_statement_says_how_parameters_lie_and_what_a_step_sends",
    "ranks_are_asked_to_stop_by_one_of_them",
    "eager_ranks_by_name_step_as_one_process_on_parts_of_parameters_and_moments",
    "plans_that_do_not_fit_are_refused_on_all_ranks",
    "ranks_that_step_by_different_updates_are_refused_and_go_on_once_they_are_alike",
    "ranks_that_take_other_steps_are_refused_whatever_shapes_they_are_of",
    "ranks_that_made_different_trainers_are_refused",
    "what_one_rank_loads_alone_is_refused_until_all_have_it",
    "what_one_rank_writes_into_parameters_or_moments_is_refused_in_the_next_step_until_it_is_alike",
    "what_torch_does_not_count_is_found_while_all_is_looked_at_in_turn",
    "what_the_loss_reads_and_its_mode_are_the_same_on_all_ranks_in_each_step",
    "groups_of_other_parameters_and_states_from_before_are_refused",
    "dropout_of_parts_is_drawn_as_one_process_draws_it_and_agrees_by_name",
    "what_ranks_save_in_any_layout_plain_torch_loads_and_goes_on_alike",
    "what_fully_shard_saved_ranks_take_in_any_layout_all_or_none",
]
LONG = [
    "all_executors_and_the_eager_step_have_one_order_of_collectives",
    "a_batch_in_parts_within_steps_as_one_process_where_a_loss_is_no_mean",
    "a_nan_in_the_part_of_one_rank_is_in_the_largest_of_all",
    "what_fails_on_one_rank_where_gradients_wait_is_an_error_on_all_and_the_update_comes_later",
    "what_fails_by_name_where_gradients_wait_is_an_error_on_all",
    "errors_and_nans_of_one_rank_by_name_are_those_of_all_and_change_nothing",
    "a_run_by_name_goes_on_from_checkpoints_in_one_process_and_by_another_plan",
    "a_module_steps_as_on_one_process_by_names_that_it_declares_and_that_are_said",
    "compiled_ranks_by_name_step_as_one_process",
    "eager_ranks_step_in_float32_as_one_process_in_float64",
    "batches_are_weighed_by_what_their_mask_keeps_or_samples_says",
    "a_nan_on_one_rank_is_skipped_on_all",
    "a_batch_that_does_not_count_changes_nothing",
    "dropout_differs_by_rank_and_runs_repeat",
    "a_module_trains_whole_and_in_parts_as_on_one_process_from_rank_0s_values",
    "gradients_and_losses_without_an_update_are_those_of_all_rows",
    "a_state_of_many_is_that_of_one_and_goes_back",
    "parts_are_even_and_what_needs_whole_parameters_is_refused",
    "a_loop_with_checkpoints_runs_as_on_one_process_and_goes_on_in_parts",
    "a_rank_that_leaves_the_compiler_goes_on_with_those_that_stay",
    "ranks_that_round_otherwise_go_on_and_save_with_one_state",
    "compiled_ranks_with_whole_parameters_step_as_one_process",
    "compiled_ranks_with_parts_of_parameters_step_as_one_process",
]
FOUR = [
    "a_tied_table_by_name_over_tp_with_the_batch_over_dp_steps_as_one_process",
    "parts_by_name_and_over_the_batch_step_as_one_process_and_share_errors",
    "a_module_steps_as_one_process_in_parts_by_name_and_over_the_batch",
]


@pytest.mark.parametrize("name", SHORT)
def test_two_ranks_in_short(name: str, two_ranks: Callable[[str], str]) -> None:
    wrong = two_ranks(name)

    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_two_ranks_at_length(name: str, two_ranks_long: Callable[[str], str]) -> None:
    wrong = two_ranks_long(name)

    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_ranks(name: str, four_ranks: Callable[[str], str]) -> None:
    wrong = four_ranks(name)

    assert not wrong
