"""The tests that `make test` leaves to `make test-slow`, by kind, which is the reason.

Of a test of many cases those that `make test` leaves out are marked where they stand: it keeps one
of each kind.
"""

# Kind: the tests, by file and the beginning of the name.
SLOW = {
    "many replicas or workers, each case in processes of its own": (
        "training/test_replicas.py::test_two_replicas_make_the_same_update",
        "training/test_replicas.py::test_the_command_on_two_replicas_equals_one_device",
        "training/test_replicas.py::test_gradients_that_are_added_up_would_be_seen",
        "training/test_replicas.py::test_an_overflow_on_one_replica",
        "training/test_replicas.py::test_workers_equal_one_device",
        "training/test_replicas.py::test_replicas_micro_batches_and_steps_draw_masks_of_their_own",
        "data/test_pipeline.py::test_two_replicas_share_one_global_batch",
        "models/test_masked.py::test_two_replicas_train_as_one",
        "evaluation/test_evaluate.py::test_two_replicas_count_as_one",
    ),
    "runs that are killed and go on": (
        "training/test_checkpoints.py::test_a_killed_run_ends_with_the_same_bits",
        "test_keras_student.py::test_a_stopped_run_goes_on_with_the_same_bits",
        "distillation/test_teacher_labels.py::test_two_processes_one_of_them_killed",
        "docs/test_ablation.py::test_every_arm_on_digits_killed_once",
    ),
    "whole commands, each with a training of its own": (
        "planning/test_plan.py::test_the_command_measures",
        "planning/test_lr_range.py::test_the_command_with_rates_as_they_are",
        "test_one_channel.py::test_a_gray_run",
        "test_object_store.py::test_a_run_on_a_store_goes_on_on_another_machine",
        "test_multilabel_run.py::test_a_run",
        "docs/test_gpu_check.py::test_the_command",
        "docs/test_gpu_check.py::test_the_steps",
        "test_train.py::test_every_policy_trains_with_deterministic_ops",
        "test_train.py::test_labels_made_ahead_train_the_same_student",
        "test_train.py::test_a_teacher_of_keras_applications_trains",
        "test_extend.py::test_",
        "test_train.py::test_xla_trains_what_the_graph_trains",
        "test_keras_student.py::test_a_real_network",
        "test_keras_student.py::test_its_exports_are_checked",
        "test_train.py::test_everything_at_once_from_the_weights_of_a_run",
        "models/test_masked.py::test_from_pretraining_to_a_student_by_command",
        "docs/test_examples.py::test_export_and_ask_server",
        "docs/test_examples.py::test_distill_your_teacher",
        "docs/test_examples.py::test_finetune_folder",
        "docs/test_examples.py::test_train_your_teacher",
        "docs/test_readme.py::test_the_script",
        "docs/test_notebook.py::test_the_cells_run",
    ),
    "what other tests show of another run, or of parts of it": (
        "test_train.py::test_every_form_of_a_model_evaluates_alike",
        "evaluation/test_exports.py::test_every_form_is_right_as_often_as_its_run",
        "distillation/test_teacher_labels.py::test_labels_judge_held_out_images",
    ),
    "whole epochs of a pipeline, read several times over": (
        "models/test_masked.py::test_the_stream_is_stateless",
        "data/test_augment.py::test_same_seed_same_bytes_at_any_parallelism",
    ),
    "a browser with a GPU in software": ("exporting/test_web_browser.py::test_",),
    "models of a published size, in a process of their own": (
        "weights/test_weight_files.py::test_loading_costs_at_most_the_checkpoint",
    ),
    "a server under load": ("export/test_serve_load.py::test_a_server_under_load",),
    "quantization of several models": (
        "exporting/test_quantize.py::test_smoothing_makes_int8_better_where_there_are_outliers",
    ),
}
