"""The places to break: each is one line of the library, with its broken form and its effect."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Break:
    """One line of the library, broken.

    Attributes:
        file: The module, below splitgrow/.
        old: Text that occurs once in it.
        new: What takes its place.
        meaning: What goes wrong.
        first: The test, or file of tests, below tests/ that is run before all others.
    """

    file: str
    old: str
    new: str
    meaning: str
    first: str


_GROUPS = "analysis/channels/channel_groups.py"

BREAKS = (
    # -- analysis
    Break(
        _GROUPS,
        "self._becomes[ours.group] = scaled(merged, common // ours.repeat)",
        "self._becomes[ours.group] = scaled(merged, common)",
        "of two groups that are merged one has its units on too many positions",
        "analysis/channels/test_channel_groups.py::test_statements_stay_true_under_any_growth",
    ),
    Break(
        _GROUPS,
        "landed.append((end, run.repeat * growth[run.group]))",
        "landed.append((end, growth[run.group]))",
        "a unit on several positions gains one position only",
        "analysis/channels/test_channel_groups.py::test_insertions_say_where_growth_lands",
    ),
    Break(
        _GROUPS,
        "self.fix(behind, reason)",
        "self.fix(before, reason)",
        "a cut at a distance from the end fixes the wrong side",
        "analysis/channels/test_channel_groups.py::test_statements_stay_true_under_any_growth",
    ),
    Break(
        _GROUPS,
        "apart and all(rise * apart >= 0 for rise in change.values())",
        "apart and any(rise * apart >= 0 for rise in change.values())",
        "two widths may overtake each other if one of several groups keeps them apart",
        "analysis/channels/test_channel_groups.py::test_statements_stay_true_under_any_growth",
    ),
    Break(
        "analysis/channels/width_remainders.py",
        "self._groups.bundle(axis, divisor.value, reason)",
        "self._groups.fix(axis, reason)",
        "a width that forward divides does not grow, not even in whole steps",
        "analysis/test_trace_recorder.py::test_a_width_that_is_compared_by_its_remainder_grows_in_whole_steps",
    ),
    Break(
        "analysis/start_ops.py",
        "if starts == {Start.MEAN} and self._mean(facts, group, having):",
        "if starts == {Start.MEAN}:",
        "any op is taken to keep the mean of a stream, so that ways are offered that are not exact",
        "analysis/test_start_states.py",
    ),
    Break(
        "layers/types/start_values.py",
        "gain, eps = gain * math.sqrt(ratio), eps * ratio",
        "gain, eps = gain * math.sqrt(ratio), eps",
        "a norm's eps does not follow the channels that join",
        "analysis/test_start_states.py",
    ),
    Break(
        "analysis/trial_runs.py",
        "return type(one) is type(other) and bool(one == other)",
        "return type(one) is type(other)",
        "a wider run may give ops other numbers",
        "analysis/test_trial_runs.py",
    ),
    Break(
        "analysis/output_comparison.py",
        "odd = ~finite | ~one.isfinite()",
        "odd = ~finite",
        "NaN in one of two runs is compared as if it were a number",
        "analysis/test_output_comparison.py",
    ),
    Break(
        "layers/types/start_values.py",
        "gain, shift = gain * ratio, shift * ratio",
        "gain, shift = gain * ratio, shift",
        "a norm whose outputs count for less counts its bias in full",
        "analysis/test_ties.py",
    ),
    # -- growth
    Break(
        "growth/apply.py",
        "if edit.closes is not None:",
        "if edit.closes:",
        "the first growth does not freeze",
        "test_growable.py::test_parameters_replaced_by_load_state_dict_are_still_known",
    ),
    Break(
        "growth/apply.py",
        "history.exact_from = history.generation",
        "history.exact_from = history.exact_from",
        "a generation that was set free is shown as if it were exact",
        "test_bad_input.py::test_a_generation_lost_to_unfreeze_is_refused",
    ),
    Break(
        "growth/planning.py",
        "for raised in range(n, n + period + max(steps.values()) ** 2 + 1):",
        "for raised in range(n + 1, n + period + max(steps.values()) ** 2 + 1):",
        "a width that is a multiple already is rounded up to the next",
        "growth/test_planning.py::test_a_width_is_raised_to_the_next_multiple",
    ),
    Break(
        "growth/history.py",
        "if view is not None and generation in history.states:",
        "if view is None and generation in history.states:",
        "a closed generation is shown with the buffers of today",
        "layers/test_module_state.py::test_a_closed_generation_is_the_same_to_the_bit",
    ),
    Break(
        "growth/edit_check.py",
        "if not found.same:",
        "if not found.same and self.outputs == []:",
        "an edit that changes the outputs is not taken back",
        "growth/test_value_trials.py::test_a_hook_that_came_after_the_analysis_has_the_edit_taken_back",
    ),
    Break(
        "growth/consolidation.py",
        "parameter.grad = fill(gradients)",
        "parameter.grad = None",
        "gradients are lost where blocks are joined",
        "growth/test_consolidation.py::test_gradients_and_adams_state_are_joined",
    ),
    Break(
        "growth/optimizer_merge.py",
        "if item.state:",
        "if not item.state:",
        "the optimizer's state is lost where blocks are joined",
        "growth/test_consolidation.py::test_gradients_and_adams_state_are_joined",
    ),
    Break(
        "growth/insertion/joining.py",
        "alike = [found[place][0] for *_, place in ranked]",
        "alike: list[nn.Parameter] = []",
        "an inserted bias joins the param group of a weight",
        "growth/insertion/test_insertion.py::test_what_is_inserted_joins_the_group_of_the_parameter_of_its_own_name",
    ),
    # -- layers
    Break(
        "layers/channel_layout.py",
        "if segment.birth <= birth))",
        "if segment.birth < birth))",
        "an axis at an edit lacks what was born in it",
        "layers/test_channel_layout.py",
    ),
    Break(
        "layers/freezing.py",
        "parameter.grad = None",
        "parameter.grad = gradient",
        "a frozen parameter keeps its gradient, and the optimizer goes on moving it",
        "growth/test_optimizers.py::test_a_closing_growth_between_backward_and_step_takes_the_old_parameters_out_of_it",
    ),
    Break(
        "layers/merged_matmul.py",
        "others = [d for d in range(outs.dim()) if d != dim % outs.dim()]",
        "others = [d for d in range(outs.dim()) if d != 1]",
        "the gradient of a bias is summed over the wrong dimensions",
        "layers/test_split_layer.py::test_a_grown_layer_trains_as_the_plain_one_whatever_follows",
    ),
    Break(
        "layers/merged_matmul.py",
        "if layer.versions() != versions:",
        "if len(layer.versions()) != len(versions):",
        "a weight that was changed between forward and backward gives wrong gradients silently",
        "layers/test_merged.py::test_a_change_where_nothing_but_products_would_notice_is_an_error",
    ),
    Break(
        "layers/merged_batchnorm.py",
        'assembly.write_back("running_var")',
        'assembly.write_back("running_mean")',
        "a block's running variance is not brought up to date",
        "layers/test_merged.py::test_statistics_of_scattered_blocks_are_those_of_running_block_by_block",
    ),
    Break(
        "layers/composition.py",
        "latest = self.modules[-1]",
        "latest = self.modules[0]",
        "a plain norm has counted the batches of the wrong block",
        "deploy/test_merge.py::test_a_merged_norm_has_counted_the_batches_of_the_block_that_trains",
    ),
    Break(
        "layers/norm_folding.py",
        "* groups // rows",
        "% groups",
        "a norm behind a transposed convolution with groups is folded into the wrong ones",
        "deploy/test_fuse.py",
    ),
    Break(
        "layers/fade.py",
        "return output.clone()",
        "return output",
        "what follows a fade may write into the fade's input",
        "layers/test_fade.py::test_what_follows_may_write_into_the_output_and_the_input_stays",
    ),
    # -- deploy
    Break(
        "deploy/passes.py",
        'or before.op != "call_module" or len(before.users) != 1:',
        'or before.op != "call_module" or not before.users:',
        "a norm is folded although others read what is before it",
        "deploy/test_fx_readers.py",
    ),
    Break(
        "deploy/layer_folding.py",
        "return entry.channel_dim(layer) % dims == 1 and",
        "return entry.channel_dim(layer) % dims >= 1 and",
        "a norm along another dimension is folded into a Linear",
        "deploy/test_fuse.py",
    ),
    Break(
        "deploy/identity_removal.py",
        "clip[0] <= within[0] and within[1] <= clip[1]",
        "clip[0] <= within[0] or within[1] <= clip[1]",
        "an activation that clips on one side more is taken out",
        "deploy/test_identity_removal.py::test_an_activation_that_has_nothing_left_to_do_goes",
    ),
    Break(
        "deploy/merge.py",
        "any(own.requires_grad or id(own) in frozen for own in parts)",
        "any(own.requires_grad for own in parts)",
        "what growth froze is still frozen in the merged model",
        "deploy/test_merge.py::test_what_growth_froze_trains_in_the_merged_model_and_what_the_user_froze_does_not",
    ),
    # -- pruning
    Break(
        "pruning/dead_units/dead_units.py",
        "if isinstance(bias, nn.Parameter) and passes_constants(module):",
        "if isinstance(bias, nn.Parameter):",
        "a constant is added to the bias of a convolution that pads with zeros",
        "pruning/dead_units/test_without_dead_units.py",
    ),
    Break(
        "pruning/dead_units/without_dead_units.py",
        "chosen = goes & known.known & (known.values != 0) & made_up_for(module, known)",
        "chosen = goes & known.known & (known.values > 0) & made_up_for(module, known)",
        "constants below zero are not made up for",
        "pruning/dead_units/test_without_dead_units.py",
    ),
    Break(
        "pruning/dead_units/weight_connections.py",
        "live[reader.ins[read & reader.matters]] = True",
        "live[reader.ins[read]] = reader.matters[read]",
        "a unit that one layer can do without counts as dead for all",
        "pruning/dead_units/test_without_dead_units.py",
    ),
    # -- checkpoints
    Break(
        "checkpoints/training.py",
        'random.setstate(states["python"])',
        "random.setstate(random.getstate())",
        "Python's random state does not come back",
        "checkpoints/test_checkpoints.py::test_random_states_and_the_execution_mode_come_back_unless_they_are_not_wanted",
    ),
    Break(
        "checkpoints/training.py",
        "undo.on_failure(partial(vars(optimizer).update, state=optimizer.state))",
        "undo.on_failure(partial(vars(optimizer).update))",
        "a load that fails leaves the optimizer with the file's state",
        "checkpoints/test_checkpoints.py::test_a_scheduler_that_refuses_its_state_leaves_model_and_optimizer_as_they_were",
    ),
    Break(
        "checkpoints/rotation.py",
        "for number in range(free, 1, -1):",
        "for number in range(2, free + 1):",
        "of the older files that are kept all but one are overwritten by the newest",
        "checkpoints/test_checkpoints.py::test_the_last_k_files_are_kept",
    ),
    # -- the others
    Break(
        "progressive/base.py",
        'group = (*biases, *weights) if name.endswith("bias") else (*weights,)',
        "group = (*weights,)",
        "a new bias joins the param group of the old adapter's weight",
        "progressive/test_progressive.py::test_new_parameters_join_the_groups_of_the_old_adapter",
    ),
    Break(
        "distributed/agreement.py",
        "if len(set(found.values())) > 1:",
        "if len(set(found.values())) > 2:",
        "two processes that are asked for different things go on",
        "distributed/test_distributed.py::test_what_one_rank_cannot_follow_changes_nothing_on_any",
    ),
    Break(
        "continual/masks.py",
        "of_own = of_seen * mine if",
        "of_own = of_seen if",
        "what other tasks own receives a gradient",
        "continual/test_masks.py",
    ),
    Break(
        "continual/ewc.py",
        "self._pull.get(n, zeros[n]) + f * own[n]",
        "self._pull.get(n, zeros[n]) + own[n]",
        "springs pull to the wrong place",
        "continual/test_ewc.py::test_the_springs_pull_to_where_each_task_was_by_how_much_it_needs_it",
    ),
    Break(
        "utils/preserve.py",
        "steps.append(partial(random.setstate, random.getstate()))",
        "steps.append(random.getstate)",
        "looking at a model that draws by Python's generator moves that generator",
        "test_growable.py::test_analysis_leaves_no_trace_and_runs_hooks_only_to_check_values",
    ),
)
