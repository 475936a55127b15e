"""The laws broken on purpose, one short change each, and the test that notices."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutation:
    """A change of one file that breaks a law."""

    law: int
    """Its number in ARCHITECTURE.md."""
    breaks: str
    """What the changed code does, in a sentence."""
    path: str
    """The file, below effnet_ray."""
    old: str
    """Text that the file has exactly once."""
    new: str
    """What takes its place."""
    test: str
    """The test that must fail: its pytest id, below tests."""
    ray: bool = False
    """Whether the test starts Ray."""


# fmt: off
LAWS_OF_THE_PLAN = (
    Mutation(1, "An epoch's last short batch is dropped.", "data/plan.py",
        "return -(-self.images // self.batch_size)",
        "return max(1, self.images // self.batch_size)",
        "test_plan.py::test_a_lane_holds_what_its_steps_use"),
    Mutation(1, "Lanes are made equally long by using images twice.", "data/plan.py",
        "rest // self.lanes + (lane < rest % self.lanes)",
        "-(-rest // self.lanes)",
        "test_plan.py::test_lanes_fill_every_global_batch_and_only_the_last_is_short"),
    Mutation(1, "A quarantined image keeps its weight.", "data/stream.py",
        "[0.0 if reason else 1.0 for reason",
        "[1.0 for reason",
        "test_stream.py::test_a_quarantined_image_has_weight_0_and_is_named"),
    Mutation(1, "The images of a skipped step are not counted.", "train/step.py",
        "return sums.if_finite(finite)",
        "return MetricSums(sums.sums * finite)",
        "test_loop.py::test_a_few_steps_are_skipped_and_the_rest_are_taken"),
    Mutation(2, "Neighbouring workers both evaluate a chunk.", "data/plan.py",
        "list(range(rank, self.chunks, workers))",
        "list(range(rank * self.chunks // workers, -(-(rank + 1) * self.chunks // workers)))",
        "test_plan.py::test_workers_share_all_eval_chunks"),
    Mutation(2, "Metrics are the mean of the workers' means.", "train/metrics.py",
        "return type(self)(sum_over_workers(self.sums.clone()))",
        "total = sum_over_workers(self.sums.clone())\n"
        "        means = sum_over_workers(self.sums[:3] / self.sums[3].clamp(min=1))\n"
        "        group = torch.distributed\n"
        "        total[:3] = means * total[3]\n"
        "        total[:3] /= group.get_world_size() if group.is_initialized() else 1\n"
        "        return type(self)(total)",
        "test_loop.py::test_an_evaluation_counts_every_image_once_on_any_number_of_workers"
        "[frozen-3]"),
    Mutation(2, "Images of weight 0 count in the metrics.", "train/metrics.py",
        "(column.double() * weight).sum()",
        "column.double().sum()",
        "test_metrics.py::test_rows_of_weight_0_do_not_count_but_are_seen"),
    Mutation(3, "Every process reads the row groups in another order.", "data/plan.py",
        "np.random.default_rng([seed, epoch])",
        'np.random.default_rng([seed, epoch, __import__("os").getpid()])',
        "test_plan.py::test_the_plan_of_a_seed_stays_what_it_is"
        "[sizes0-0-64-16-0-0ad6cc24fcee5ce7]"),
    Mutation(3, "Augmentation depends on the step that a run was resumed at.", "data/chunks.py",
        "image_random(dataset.recipe.seed, task.view, record.id, use)",
        "image_random(dataset.recipe.seed, task.view, record.id + task.skip_steps, use)",
        "test_stream.py::test_a_resumed_stream_is_the_tail_of_the_whole_one[1]"),
    Mutation(3, "Augmentation is seeded by the worker's rank.", "data/stream.py",
        "view=phases.view_at(self._recipe, epoch),",
        "view=epoch + 100 * self._lanes[0],",
        "test_plain_laws.py::test_placement_is_not_a_hyper_parameter[2]"),
    Mutation(3, "Packing shuffles differently each time.", "packing/splits.py",
        "np.random.default_rng([seed, len(SPLITS), index])",
        "np.random.default_rng()",
        "test_pack.py::test_packing_twice_writes_the_same_bytes"),
)

LAWS_OF_TRAINING = (
    Mutation(4, "The loss is divided by the worker's own number of images.", "train/step.py",
        "return GlobalBatch(images, readable, bool(stops))",
        "return GlobalBatch(images, batch.readable, bool(stops))",
        "test_loop.py::test_the_first_gradients_are_as_long_on_any_number_of_workers[frozen-3]"),
    Mutation(4, "Dropout is seeded by the worker's rank.", "train/draws.py",
        "torch.manual_seed(lane_seed(recipe.seed, step, lane.index))",
        "group = torch.distributed\n"
        "            rank = group.get_rank() if group.is_initialized() else 0\n"
        "            torch.manual_seed(lane_seed(recipe.seed, step, rank))",
        "test_loop.py::test_what_is_dropped_depends_on_seed_step_and_lane_and_on_nothing_else"
        "[dropout]"),
    Mutation(4, "BatchNorm's statistics are those of the last lane.", "model/batchnorm.py",
        "self._sum[:-1].add_(self._live, alpha=images)\n"
        "        self._sum[-1] += images",
        "self._sum[:-1].copy_(self._live * images)\n"
        "        self._sum[-1] = images",
        "test_network.py::"
        "test_running_statistics_take_one_step_to_the_image_weighted_mean_of_the_lanes"),
    Mutation(4, "The padding of an idle worker enters BatchNorm's statistics.", "train/step.py",
        "trainer.running_statistics.end_lane(0 if batch.is_padding else rows)",
        "trainer.running_statistics.end_lane(rows)",
        "test_loop.py::test_running_statistics_are_the_same_on_any_number_of_workers[3]"),
    Mutation(4, "Every pass gets the masks of a step's first images.", "train/draws.py",
        "end = first + rows\n",
        "first, end = 0, rows\n",
        "test_memory.py::"
        "test_a_step_is_the_same_however_many_images_are_computed_at_once[plain-6-passes2]"),
    Mutation(4, "An image is mixed with one of another lane.", "train/draws.py",
        "torch.arange(first + lane.rows - 1.0, first - 1.0, -1.0)",
        "torch.arange(first + lane.rows - 1.0, first - 1.0, -1.0).clamp(max=3)",
        "test_mixup.py::test_an_images_partner_is_in_its_own_lane"),
    Mutation(5, "A resumed run begins its epoch anew.", "train/loop.py",
        "for batch in batches.train(step):",
        "for batch in batches.train(0):",
        "test_checkpoint.py::test_resuming_equals_never_stopping[frozen-contiguous]"),
    Mutation(5, "A resumed run goes on one step late.", "data/plan.py",
        "[skip_steps * self.micro_batch :]",
        "[(skip_steps + (skip_steps > 0)) * self.micro_batch :]",
        "test_plan.py::test_resuming_at_any_step_is_the_tail_of_never_stopping"),
    Mutation(5, "A resumed run has no optimizer moments.", "train/checkpoint.py",
        "state.optimizer.load_state_dict(_optimizer_state(state, optimizer))",
        "_optimizer_state(state, optimizer)",
        "test_checkpoint.py::test_resuming_equals_never_stopping[frozen-contiguous]"),
    Mutation(5, "A resumed run's moving average begins anew.", "train/checkpoint.py",
        "state.averaged.backbone.load_state_dict(load(self.read(AVERAGED)))",
        "self.read(AVERAGED)",
        "test_checkpoint.py::test_resuming_equals_never_stopping_with_every_dial_on"),
    Mutation(5, "A resumed run's loss scale begins anew.", "train/state.py",
        '"scale": LossScale.from_json,',
        '"scale": lambda scale: LossScale.of(),',
        "test_checkpoint.py::test_resuming_equals_never_stopping_in_float16"),
    Mutation(5, "A resumed run's learning-rate schedule begins anew.", "train/loop.py",
        "rate = learning_rate(trainer.recipe, state.step, steps_per_epoch)",
        'trainer.taken = getattr(trainer, "taken", -1) + 1\n'
        "        rate = learning_rate(trainer.recipe, trainer.taken, steps_per_epoch)",
        "test_checkpoint.py::test_resuming_equals_never_stopping[frozen-contiguous]"),
    Mutation(5, "Early stopping forgets the epochs before a resume.", "train/state.py",
        "[from_dict(EpochReport, report) for report in history]",
        "[]",
        "test_checkpoint.py::test_resuming_equals_never_stopping[frozen-contiguous]"),
    Mutation(5, "The count of steps skipped in a row is lost.", "train/state.py",
        "return Progress(**values)",
        'return Progress(**(values | {"skipped": torch.tensor(0)}))',
        "test_checkpoint.py::test_nothing_of_a_runs_progress_is_lost"),
    Mutation(5, "A worker that survives another takes its own sums for all.",
        "train/collectives.py",
        "    if stated is not None:",
        "    if not dist.is_initialized():\n        return 1\n    if stated is not None:",
        "test_metrics.py::test_a_worker_whose_group_is_gone_does_not_take_its_own_sums_for_all"),
    Mutation(5, "Gradients of three workers are added in DDP's first order.", "train/step.py",
        "accumulate_gradients(self, self.padding(), 0, 1)",
        "pass",
        "test_plain_laws.py::"
        "test_a_killed_run_resumes_bit_equal_and_times_what_it_did_itself[3]"),
)

LAWS_OF_RECORDS = (
    Mutation(6, "A checkpoint's record is written before its files.", "train/checkpoint.py",
        "    digests = {}\n",
        '    early = dict.fromkeys(snapshot.tensors, "")\n'
        '    first = {"files": early, **snapshot.progress.to_json()}\n'
        '    sealed = json.dumps({**first, "sha256": _digest(first)}).encode()\n'
        "    storage.write_bytes(storage.join(uri, RECORD), sealed)\n"
        "    digests = {}\n",
        "test_checkpoint.py::test_a_checkpoints_record_is_written_once_and_last"),
    Mutation(6, "The digest of a checkpoint's files is not compared.", "train/checkpoint.py",
        "if hashlib.sha256(data).hexdigest() != self.files[name]:",
        "if name not in self.files:",
        "test_checkpoint.py::test_a_flipped_byte_is_said_and_the_one_before_is_used"
        "[optimizer.safetensors]"),
    Mutation(6, "A release's record is written before its files.", "release/publish.py",
        '            for file in record["files"]:',
        "            storage.write_bytes(record_uri(uri), claim)\n"
        '            for file in record["files"]:',
        "test_store_crash.py::"
        "test_a_publisher_killed_at_any_step_leaves_no_partial_release_and_no_gap[disk-5]"),
    Mutation(6, "A create-only write replaces what is there.", "storage/local.py",
        "        if exclusive:\n",
        "        if False:\n",
        "test_conditional.py::test_a_swap_needs_the_tag_of_what_is_there[disk]"),
    Mutation(6, "The digest of a release's files is not compared.",
        "storage/checksummed_json.py",
        ' or hashlib.sha256(data).hexdigest() != record["files"][name]:',
        ":",
        "test_evaluate.py::test_a_release_that_was_altered_is_not_opened"
        "[model.safetensors-was altered]"),
    Mutation(7, "A release's recipe lacks the chosen micro-batch.", "publish/from_run.py",
        "to_json(asdict(run.recipe))",
        'to_json(asdict(run.recipe) | {"micro_batch": None})',
        "test_plain_laws.py::test_a_released_recipe_run_again_gives_the_same_weights"),
    Mutation(7, "`evaluate` preprocesses as the variant's weights expect.",
        "inference/evaluate.py",
        "spec=release.spec,",
        "spec=release.recipe.variant_spec.input_spec(),",
        "test_evaluate.py::test_images_are_preprocessed_as_the_release_says"),
    Mutation(7, "`predict` does not crop.", "inference/predictor.py",
        "            write_eval_view(data, spec, view)[1]",
        "            write_eval_view("
        "data, InputSpec(resolution=spec.resolution, crop=1.0), view)[1]",
        "test_predict.py::test_a_prediction_is_made_by_the_released_preprocessing"),
    Mutation(7, "The eval view ignores the weights' interpolation.", "data/views.py",
        "_RESAMPLING[spec.interpolation]",
        "Image.Resampling.BILINEAR",
        "test_images.py::test_the_eval_view_is_timms_for_any_shape_and_spec[center]"),
    Mutation(7, "The network does not subtract the weights' mean.", "model/network.py",
        "(images - self.mean) / self.std",
        "images / self.std",
        "test_network.py::"
        "test_logits_are_those_of_timms_network_on_images_normalised_by_hand[ap]"),
    Mutation(8, "The data set is read after Ray was asked for.", "train/finetune.py",
        "    setup = set_up_run(",
        "    (connect or _connect)(placement)\n    setup = set_up_run(",
        "test_cli.py::test_a_run_reads_its_data_set_before_it_asks_for_ray"),
    Mutation(8, "`evaluate` compares classes after Ray was asked for.", "inference/evaluate.py",
        "    inputs = open_inputs(",
        "    (connect or partial(session.connect, local=False, verbose=False))(placement)\n"
        "    inputs = open_inputs(",
        "test_evaluate.py::test_classes_that_the_release_does_not_know_are_named"),
    Mutation(8, "Wrong flags end with the exit code of a failed run.", "errors.py",
        "    exit_code = 2\n",
        "    exit_code = 1\n",
        "test_cli.py::test_impossible_flags_are_refused[flags3-at least 32 px]"),
    Mutation(9, "A class may be left without train images.", "packing/splits.py",
        "if 0 < len(units) <= len(missing):",
        "if False:",
        "test_splits.py::test_a_class_too_small_is_refused_by_name"),
    Mutation(9, "Hidden files vanish.", "packing/class_folders.py",
        "for path in sizes if path not in images}",
        "for path in visible if path not in images}",
        "test_accounting.py::test_every_file_of_any_tree_is_accounted_for_or_the_source_is_refused"),
    Mutation(9, "A sample's second image vanishes.", "packing/webdataset.py",
        "            yield set_aside_sample(member.path, f\"its sample has the image "
        "{group.image.path}\")\n",
        "            pass\n",
        "test_accounting.py::test_every_member_of_a_tar_is_accounted_for"),
    Mutation(10, "The head is not solved.", "train/loop.py",
        "            if phase.solved and not _has_solved_head(",
        "            if False and not _has_solved_head(",
        "test_head.py::test_a_default_run_is_at_least_as_good_as_a_linear_probe"),
    Mutation(10, "The solved head is trained any further.", "train/loop.py",
        "    if trainer.phase.solved:",
        "    if False:",
        "test_head.py::test_a_solved_head_is_only_measured"),
    Mutation(4, "Sums of the solver depend on how workers share images.", "train/collectives.py",
        "units = (values.masked_fill(bad, 0) * FIXED_POINT).round().long()",
        "units = values.float()",
        "test_head.py::test_the_head_does_not_depend_on_the_number_of_workers"),
    Mutation(11, "Several labels per image get a softmax.", "inference/logits.py",
        "return logits.sigmoid() if multilabel else logits.softmax(1)",
        "return logits.softmax(1)",
        "test_logits.py::test_torch_and_numpy_agree_on_probabilities[True]"),
    Mutation(11, "Predictions and the server ignore the calibration.", "inference/scorer.py",
        "probabilities(logits.double(), self.release.calibration, ",
        "probabilities(logits.double(), ",
        "test_calibration.py::test_evaluations_predictions_server_and_exports_have_the_same_"
        "probabilities[one_label]"),
    Mutation(11, "Exports ignore the calibration.", "inference/export.py",
        "probabilities(logits, self.calibration, ",
        "probabilities(logits, ",
        "test_calibration.py::test_evaluations_predictions_server_and_exports_have_the_same_"
        "probabilities[many_labels]"),
)

LAWS_OF_USE = (
    Mutation(12, "The settings of a view are no part of its features' key.",
        "data/feature_cache.py",
        "*(() if view is None else recipe.view_settings),",
        "",
        "test_features.py::"
        "test_every_field_marked_as_changing_a_view_changes_the_key_of_drawn_views"),
    Mutation(13, "An image's digest is not compared.", "data/row_group.py",
        'if hashlib.sha256(values["image"]["bytes"]).hexdigest() != values["digest"]:',
        "if False:",
        "test_damage.py::test_of_a_thousand_flipped_bits_none_passes_unseen"),
    Mutation(14, "A move of an alias overwrites another's.", "release/aliases.py",
        "conditional.swap(uri, data, stored.etag)",
        "storage.write_bytes(uri, data)",
        "test_store_crash.py::"
        "test_of_many_publishers_and_promoters_at_once_each_number_and_move_has_one[disk-6]"),
    Mutation(15, "Predictions are not counted at the end.", "inference/predict.py",
        "if rows + quarantined != source.images:",
        "if False:",
        "test_predict.py::test_a_missing_row_is_told"),
    Mutation(16, "Names are not escaped in a page.", "reporting/page.py",
        "autoescape=True",
        "autoescape=False",
        "test_evaluation_page.py::test_the_page_loads_nothing_and_runs_nothing"),
    Mutation(23, "All variants compete in one bracket.", "sweep/asha.py",
        "return str(self._brackets[variant].on_trial_result(None, trial, report))",
        "return str(self._brackets[min(self._brackets)].on_trial_result(None, trial, report))",
        "test_asha.py::test_no_variant_is_stopped_because_others_are_better"),
    Mutation(24, "Steps that a tracker has are logged again.", "tracking/metrics.py",
        "new = point.step > self.step",
        "new = True",
        "test_trackers.py::test_a_resumed_run_is_one_run_with_every_step_once"),
    Mutation(25, "A second call of a sweep repeats what is over.", "sweep/trial_log.py",
        "        return trial.over",
        "        return False",
        "test_trial_log.py::"
        "test_a_second_call_repeats_nothing_that_is_over_and_resumes_the_rest"),
)
# fmt: on

MUTATIONS = (*LAWS_OF_THE_PLAN, *LAWS_OF_TRAINING, *LAWS_OF_RECORDS, *LAWS_OF_USE)
