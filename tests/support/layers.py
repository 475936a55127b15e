"""The order of the modules, and which of them may import which library."""

ORDER = (
    "redaction errors safe_json safe_yaml variants schema recipe_rules recipe_fields "
    "recipe_checks recipe phases placement "
    "storage.names storage.uri storage.backend storage.retry storage.local_listing storage.local "
    "storage.temporary "
    "storage.s3_endpoint storage.s3_errors storage.s3 storage storage.multipart "
    "storage.conditional storage.checksummed_json storage.parquet "
    "release_format.layout release_format.calibration release_format.config "
    "release_format.record "
    "data.split_index data.manifest data.classes data.augment data.image_checks "
    "data.bit_depth data.image_files data.decode "
    "data.views data.class_balance data.plan data.parquet_reads data.train_labels "
    "data.hf_parquet data.row_group data.row_group_reads data.source_size data.feature_cache "
    "data.chunks data.thread_executor data.decode_machines data.decode_limit data.ray_executor "
    "data.stream "
    "packing.options packing.listing packing.archive_job packing.webdataset packing.archives "
    "packing.source_labels packing.tables packing.corrections packing.class_folders "
    "packing.sources packing.splits packing.duplicates packing.shards packing.image_index "
    "packing.shard_jobs packing.report packing.results packing.in_place packing.hub packing.pack "
    "packing.on_demand packing.sample packing.ray_map "
    "model.dropout model.batchnorm model.network model.references model.compile model.ema "
    "model.packaged_weights model.pretrained model.optimizer model.profile "
    "runtime.signal_handlers runtime.events runtime.polling runtime.actors runtime.preemption "
    "runtime.nodes "
    "runtime.shared_folders runtime.ray_start runtime.session runtime.gpus runtime.pending "
    "runtime.inference_actors "
    "train.metric_definitions train.epoch_report train.class_metrics train.average_precision "
    "train.collectives train.memory train.batch train.mixup train.draws train.loss train.metrics "
    "train.loss_scale train.teacher train.run_record train.eval_outputs train.state "
    "train.skipped_steps train.head_features "
    "train.head_solver train.evaluation train.step train.oom "
    "train.loop train.checkpoint train.checkpoint_writer train.throughput train.step_log "
    "train.events train.worker_job train.device_batches train.resume train.failures "
    "train.worker_loop train.compile_rule train.run_setup train.run_monitor train.worker "
    "train.feature_tasks "
    "train.precompute_features train.network_interface train.ray_trainer train.finetune "
    "train.weights_evaluator train.average "
    "release.names release.model_folder release.publish release.alias_move release.aliases "
    "release.maintenance release.store release.catalog release.load "
    "inference.options reporting.page reporting.svg reporting.data_pictures "
    "reporting.data_page reporting.training_curves "
    "inference.logits inference.activation_maps inference.scorer inference.eval_inputs "
    "inference.metric_sums "
    "inference.multiclass "
    "inference.multilabel inference.evaluate inference.groups inference.corrections "
    "inference.plots "
    "inference.quantize inference.export "
    "inference.image_sources inference.predictor inference.unknown_pictures "
    "inference.paired_test inference.report "
    "inference.predict inference.review inference.explain "
    "inference.onnx_outputs inference.http_api inference.http_docs "
    "inference.http_connections inference.http_metrics inference.request_limit "
    "inference.serve "
    "publish.options publish.calibrate publish.card publish.provenance publish.test_score "
    "publish.from_run "
    "sweep.objective sweep.space sweep.planned_trials sweep.variant_schedule sweep.asha "
    "sweep.sweep_record "
    "sweep.trial_log sweep.scheduled_search sweep.results sweep.costs sweep.resources "
    "sweep.searchers sweep.sweep_rules sweep.definition sweep.trial sweep.tune sweep.releases "
    "sweep.checkpoints "
    "sweep.report "
    "tracking.metrics tracking.run_history tracking.tracker tracking.mlflow tracking.tensorboard "
    "tracking.trackers "
    "preflight.findings preflight.ec2 preflight.compute_engine preflight.cluster_security "
    "preflight.kuberay_pods preflight.kuberay preflight.cluster_file "
    "preflight.permissions preflight.inputs preflight.working_dir preflight.cluster "
    "preflight.preflight "
    "cli.terminal cli.parsing cli.output_files cli.compare cli.flags cli.pack_view "
    "cli.data_set cli.check "
    "cli.release_flags cli.finetune cli.pack cli.data cli.tune_view cli.tune cli.promote "
    "cli.average "
    "cli.models_tables "
    "cli.models cli.evaluate cli.predict cli.serve cli.all_jobs cli.machine cli.main"
).split()
"""Top to bottom: a module imports only from modules before it."""

DOORS = {
    "ray": "packing.ray_map data.decode_machines data.decode_limit data.ray_executor runtime. "
    "train.worker "
    "train.precompute_features train.network_interface train.ray_trainer train.finetune "
    "sweep.asha sweep.costs sweep.scheduled_search sweep.searchers "
    "sweep.trial preflight.cluster_file "
    "preflight.working_dir preflight.cluster inference.predictor inference.serve",
    "timm": "model.",
    "s3fs": "storage.s3",
    "fsspec": "storage.s3",
    "aiohttp": "storage.s3_errors",
    "botocore": "storage.s3 storage.s3_endpoint storage.s3_errors preflight.ec2 "
    "preflight.permissions",
    "jsonschema": "preflight.compute_engine preflight.kuberay",
    "tenacity": "storage.retry",
    "torch": "model. train. runtime.gpus runtime.inference_actors inference.logits "
    "inference.activation_maps inference.explain inference.scorer inference.export "
    "inference.onnx_outputs inference.http_api "
    "tracking.tensorboard",
    "mlflow": "tracking.mlflow",
    "tensorboard": "tracking.tensorboard",
    "huggingface_hub": "model. packing.hub",
    "PIL": "data.augment data.image_checks "
    "data.bit_depth data.decode data.views packing.sample inference.activation_maps "
    "inference.plots",
    "pickle": "",
    "_pickle": "",
    "cloudpickle": "",
    "dill": "",
}
"""Library → the modules that may import it; a name that ends in a dot means a folder."""
