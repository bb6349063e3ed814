"""What a user may have meant by a name that is none: words of the field, the nearest spelling."""

import difflib
from collections.abc import Iterable, Mapping

RUN = {
    # words of other trainers, in the section where they stand
    "prompts.test": "prompts.held_out",
    "prompts.eval": "prompts.held_out",
    "prompts.val": "prompts.held_out",
    "prompts.validation": "prompts.held_out",
    "rewards.eval": "rewards.held_out",
    "rewards.weights": "rewards.train",
    "save_interval": "output.checkpoint_every",
    "checkpoint_freq": "output.checkpoint_every",
    "keep_checkpoints": "output.checkpoints_kept",
    "num_checkpoints": "output.checkpoints_kept",
    "max_iters": "iterations",
    "max_iter": "iterations",
    "num_iters": "iterations",
    "train_iters": "iterations",
    "kl_loss_coef": "objective.kl_weight",
    "kl_coefficient": "objective.kl_weight",
    "eps_clip": "objective.clip_range",
    "adam_eps": "optimizer.options",
    "manual_seed": "seed",
    "prompts_per_iteration": "rollout.prompts",
    "num_eval_prompts": "evaluation.prompts",
    "cfg_weight": "model.cfg",
    "window.shift": "window.stride",
    "window.length": "window.size",
    "optimizer_steps": "objective.updates",
    "optimiser": "optimizer.name",
    "n_eval": "evaluation.every",
    # optimizer
    "learning_rate": "optimizer.lr",
    "lr_rate": "optimizer.lr",
    "base_lr": "optimizer.lr",
    "max_lr": "optimizer.lr",
    "step_size": "optimizer.lr",
    "optim": "optimizer.name",
    "optimizer_type": "optimizer.name",
    "optimizer_name": "optimizer.name",
    "adam_beta1": "optimizer.betas",
    "adam_beta2": "optimizer.betas",
    "beta1": "optimizer.betas",
    "beta2": "optimizer.betas",
    "optimizer.beta": "optimizer.betas",
    "adam_epsilon": "optimizer.options",
    "eps": "optimizer.options",
    "optimizer.epsilon": "optimizer.options",
    "momentum": "optimizer.options",
    "wd": "optimizer.weight_decay",
    "adam_weight_decay": "optimizer.weight_decay",
    "grad_clip": "optimizer.max_grad_norm",
    "gradient_clip": "optimizer.max_grad_norm",
    "clip_grad_value": "optimizer.max_grad_norm",
    "max_gradient_norm": "optimizer.max_grad_norm",
    "gradient_clipping": "optimizer.max_grad_norm",
    "gradient_clip_val": "optimizer.max_grad_norm",
    "clip_grad_norm": "optimizer.max_grad_norm",
    "clip_grad": "optimizer.max_grad_norm",
    "max_norm": "optimizer.max_grad_norm",
    "optimizer.clip": "optimizer.max_grad_norm",
    "warmup_steps": "optimizer.warmup",
    "warmup_iterations": "optimizer.warmup",
    "lr_warmup_steps": "optimizer.warmup",
    "num_warmup_steps": "optimizer.warmup",
    "warmup_ratio": "optimizer.warmup",
    "lr_scheduler": "optimizer.schedule",
    "lr_scheduler_type": "optimizer.schedule",
    "scheduler": "optimizer.schedule",
    "lr_schedule": "optimizer.schedule",
    "ema": "optimizer.ema_decay",
    "use_ema": "optimizer.ema_decay",
    "ema_rate": "optimizer.ema_decay",
    # length and seed
    "max_steps": "iterations",
    "num_iterations": "iterations",
    "max_iterations": "iterations",
    "max_train_steps": "iterations",
    "num_train_steps": "iterations",
    "total_steps": "iterations",
    "train_steps": "iterations",
    "training_steps": "iterations",
    "iters": "iterations",
    "num_epochs": "iterations",
    "num_train_epochs": "iterations",
    "epochs": "iterations",
    "max_epochs": "iterations",
    "n_epochs": "iterations",
    "epoch": "iterations",
    "seeds": "seed",
    "random_seed": "seed",
    "random_state": "seed",
    # rollout
    "num_generations": "rollout.group_size",
    "num_images_per_prompt": "rollout.group_size",
    "num_image_per_prompt": "rollout.group_size",
    "generations": "rollout.group_size",
    "samples_per_prompt": "rollout.group_size",
    "num_samples": "rollout.group_size",
    "n": "rollout.group_size",
    "k": "rollout.group_size",
    "group": "rollout.group_size",
    "num_groups": "rollout.prompts",
    "num_images": "rollout.group_size",
    "images_per_prompt": "rollout.group_size",
    "batch_size": "rollout.prompts",
    "bs": "rollout.prompts",
    "batch": "rollout.prompts",
    "train_batch_size": "rollout.prompts",
    "prompts_per_batch": "rollout.prompts",
    "num_prompts": "rollout.prompts",
    "per_device_train_batch_size": "compute.micro_batch",
    "micro_batch_size": "compute.micro_batch",
    "eval_batch_size": "compute.micro_batch",
    "per_device_eval_batch_size": "compute.micro_batch",
    "mini_batch_size": "compute.micro_batch",
    "gradient_accumulation_steps": "objective.updates",
    "num_updates": "objective.updates",
    "num_inner_epochs": "objective.updates",
    "ppo_epochs": "objective.updates",
    "mu": "objective.updates",
    # sampler
    "num_inference_steps": "sampler.steps",
    "num_steps": "sampler.steps",
    "sampling_steps": "sampler.steps",
    "sample_steps": "sampler.steps",
    "inference_steps": "sampler.steps",
    "denoising_steps": "sampler.steps",
    "denoise_steps": "sampler.steps",
    "num_sampling_steps": "sampler.steps",
    "timesteps": "sampler.steps",
    "num_train_timesteps": "sampler.steps",
    "eval_num_steps": "evaluation.steps",
    "flow_shift": "sampler.shift",
    "time_shift": "sampler.shift",
    "noise_level": "sampler.eta",
    "noise_scale": "sampler.eta",
    "sigma": "sampler.eta",
    "sde_type": "sampler.kernel",
    "noise_type": "sampler.kernel",
    "solver": "sampler.order",
    "solver_order": "sampler.order",
    "dpm_solver_order": "sampler.order",
    "dpm_apply_strategy": "sampler.tail_ratio",
    "same_noise": "rollout.noise",
    "init_same_noise": "rollout.noise",
    # window
    "tau": "window.interval",
    "shift_interval": "window.interval",
    "iters_per_group": "window.interval",
    "window_size": "window.size",
    "w": "window.size",
    "sde_window_size": "window.size",
    "sde_window_range": "window.start",
    "window_stride": "window.stride",
    "sample_strategy": "window.strategy",
    "prog_overlap_step": "window.stride",
    "roll_back": "window.at_end",
    "timestep_fraction": "window.fraction",
    # objective
    "beta": "objective.kl_weight",
    "kl": "objective.kl_weight",
    "kl_coef": "objective.kl_weight",
    "kl_coeff": "objective.kl_weight",
    "kl_beta": "objective.kl_weight",
    "kl_ratio": "objective.kl_weight",
    "kl_penalty": "objective.kl_weight",
    "init_kl_coef": "objective.kl_weight",
    "epsilon": "objective.clip_range",
    "clip_eps": "objective.clip_range",
    "clip_epsilon": "objective.clip_range",
    "clip_ratio": "objective.clip_range",
    "cliprange": "objective.clip_range",
    "ratio_clip": "objective.clip_range",
    "clip": "objective.clip_range",
    "adv_clip_max": "objective.advantage_clip",
    "adv_clip": "objective.advantage_clip",
    "bestofn": "objective.best_of",
    "best_of_n": "objective.best_of",
    # model
    "guidance_scale": "model.guidance",
    "cfg_scale": "model.cfg",
    "true_cfg_scale": "model.cfg",
    "classifier_free_guidance": "model.cfg",
    "use_cfg": "model.cfg",
    "lora_r": "model.lora_rank",
    "lora_dim": "model.lora_rank",
    "rank": "model.lora_rank",
    "r": "model.lora_rank",
    "alpha": "model.lora_alpha",
    "lora": "model.train",
    "use_lora": "model.train",
    "target_modules": "model.lora_targets",
    "lora_target_modules": "model.lora_targets",
    "model_name": "model.name",
    "policy": "model.name",
    "pretrained": "model.checkpoint",
    "pretrained_model": "model.checkpoint",
    "pretrained_model_name_or_path": "model.checkpoint",
    "model_path": "model.checkpoint",
    "weights": "model.checkpoint",
    "resolution": "model.height",
    "image_size": "model.height",
    "img_size": "model.height",
    "h": "model.height",
    "max_sequence_length": "model.text_tokens",
    # prompts and rewards
    "dataset": "prompts.train",
    "train_prompts": "prompts.train",
    "data_path": "prompts.train",
    "prompt_file": "prompts.train",
    "test_prompts": "prompts.held_out",
    "eval_prompts": "prompts.held_out",
    "reward": "rewards.train",
    "reward_fn": "rewards.train",
    "reward_funcs": "rewards.train",
    "reward_model": "rewards.train",
    "reward_weights": "rewards.train",
    "multi_rewards_mix": "rewards.aggregate",
    # evaluation and output
    "eval_every": "evaluation.every",
    "eval_freq": "evaluation.every",
    "eval_steps": "evaluation.every",
    "eval_interval": "evaluation.every",
    "evaluation.interval": "evaluation.every",
    "evaluation.freq": "evaluation.every",
    "evaluation.batch_size": "compute.micro_batch",
    "evaluation.num_samples": "evaluation.images_per_prompt",
    "images_per_eval_prompt": "evaluation.images_per_prompt",
    "save_steps": "output.checkpoint_every",
    "save_freq": "output.checkpoint_every",
    "save_every": "output.checkpoint_every",
    "checkpointing_steps": "output.checkpoint_every",
    "save_total_limit": "output.checkpoints_kept",
    "report_to": "output.trackers",
    "logger": "output.trackers",
    "wandb": "output.trackers",
    "wandb_project": "output.project",
    "project_name": "output.project",
    # compute
    "mixed_precision": "compute.precision",
    "dtype": "compute.precision",
    "bf16": "compute.precision",
    "fp16": "compute.precision",
    "torch_compile": "compute.compile",
    "use_gradient_checkpointing": "compute.gradient_checkpointing",
    "attn_implementation": "compute.attention",
    "attention_backend": "compute.attention",
    "cpu_offload": "compute.offload",
    "enable_vae_tiling": "compute.vae_tiling",
}
"""Words of other trainers for a setting of a run, in lower case: without a section, or with one
where the word means something else in it."""

SWEEP = {
    "parameters": "grid",
    "params": "grid",
    "matrix": "grid",
    "sweep": "grid",
    "variants": "arms",
    "methods": "arms",
    "conditions": "arms",
    "groups": "arms",
    "experiments": "arms",
    "n_seeds": "seeds",
    "num_seeds": "seeds",
    "repeats": "seeds",
    "replicates": "seeds",
    "seed": "seeds",
    "baseline": "reference",
    "control": "reference",
    "config": "base",
    "extends": "base",
    "defaults": "base",
    "preset": "base",
    "title": "question",
    "description": "question",
    "comment": "notes",
    "metric": "measure",
    "reward": "measure",
    "overrides": "set",
    "settings": "set",
    "resources": "slurm",
    "cluster": "slurm",
    "table": "paper",
}
"""Words for a key of a sweep file."""

SEARCH = {
    **{
        word: key
        for word, key in SWEEP.items()
        if key not in ("grid", "arms", "reference", "paper")
    },
    "parameters": "space",
    "params": "space",
    "search_space": "space",
    "ranges": "space",
    "grid": "space",
    "n_trials": "trials",
    "num_trials": "trials",
    "max_trials": "trials",
    "run_cap": "trials",
    "n_jobs": "parallel",
    "concurrency": "parallel",
    "max_concurrent": "parallel",
    "objective": "objectives",
    "goal": "objectives",
    "direction": "objectives",
    "directions": "objectives",
    "pruner": "prune",
    "early_terminate": "prune",
    "initial": "enqueue",
    "points_to_evaluate": "enqueue",
    "random_state": "sampler_seed",
}
"""Words for a key of a search file."""

RANGE = {
    "min": "low",
    "max": "high",
    "lower": "low",
    "upper": "high",
    "start": "low",
    "stop": "high",
    "end": "high",
    "from": "low",
    "to": "high",
    "values": "choices",
    "options": "choices",
    "categories": "choices",
    "q": "step",
    "log_scale": "log",
    "logarithmic": "log",
    "distribution": "log",
    "scale": "log",
    "except": "unless",
    "condition": "unless",
}
"""Words for a key of a range of a search."""

SLURM = {
    "mem": "memory_gb",
    "memory": "memory_gb",
    "ram": "memory_gb",
    "mem_gb": "memory_gb",
    "mem_per_node": "memory_gb",
    "gpu": "gpus",
    "num_gpus": "gpus",
    "n_gpus": "gpus",
    "gpus_per_node": "gpus",
    "gres": "gpus",
    "cpu": "cpus",
    "cores": "cpus",
    "num_cpus": "cpus",
    "cpus_per_task": "cpus",
    "ntasks_per_node": "tasks_per_node",
    "processes": "tasks_per_node",
    "ntasks": "tasks_per_node",
    "queue": "partition",
    "walltime": "time",
    "time_limit": "time",
    "timeout": "time",
    "timeout_min": "time",
    "hours": "time",
    "minutes": "time",
    "num_nodes": "nodes",
    "project": "account",
    "allocation": "account",
    "modules": "setup",
    "module": "setup",
    "env": "setup",
    "srun_args": "sbatch",
    "additional_parameters": "sbatch",
    "extra": "sbatch",
    "max_jobs": "at_once",
    "array_parallelism": "at_once",
    "fsdp": "sharded",
    "container": "python",
}
"""Words for what a job asks of Slurm."""


def did_you_mean(
    name: str, known: Iterable[str], synonyms: Mapping[str, str] | None = None, listed: bool = True
) -> str:
    """`; did you mean X?`, or else what there is where that is short and `listed`."""
    names = list(known)
    word = plain(name)
    meant = (synonyms or {}).get(word)
    if meant not in names:
        spelled = {plain(one): one for one in reversed(names)}
        near = difflib.get_close_matches(word, spelled, n=1, cutoff=0.6)
        meant = spelled[near[0]] if near else None
    if meant is not None:
        return f"; did you mean {meant}?"
    return f" (known: {', '.join(names[:30])}{', ...' * (len(names) > 30)})" if listed else ""


def plain(name: str) -> str:
    """A name without what people write differently: case, hyphens."""
    return name.strip().lower().replace("-", "_")


def slurm_wish(name: str, settings: Iterable[str]) -> str | None:
    """What a job asks Slurm for that is meant by a name; None for one that settings of runs, dotted
    `settings`, have too, unless it begins with `slurm.`."""
    word = plain(name)
    if word.startswith("slurm."):
        word = word.removeprefix("slurm.")
        return SLURM.get(word, word)
    if word in RUN or any(key.rpartition(".")[2] == word for key in settings):
        return None
    return SLURM.get(word, word if word in SLURM.values() else None)


def _joined(name: str) -> str:
    return name.replace("_", "")


def _run_together(known: Mapping[str, str]) -> dict[str, str]:
    """Settings by the words for them, without underscores."""
    lasts = {_joined(key.rpartition(".")[2]): known[key] for key in reversed([*known])}
    return {**{_joined(key): known[key] for key in known}, **lasts} | {
        _joined(word): key for word, key in RUN.items()
    }


def nearest_setting(dotted: str, keys: Iterable[str]) -> str | None:
    """The setting of a run, one of the dotted `keys`, that is meant by a key that is none."""
    known = {plain(key): key for key in keys}
    word = plain(dotted)
    section, _, last = word.rpartition(".")
    # The right name in the wrong section, or without one.
    same = [key for key in known if key.rpartition(".")[2] == last]
    if same and not (section and word in RUN):
        near = difflib.get_close_matches(word, same, n=1, cutoff=0.0)
        return known[near[0]]
    inside = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    meant = next((RUN[name] for name in (word, word.replace(".", "_"), last) if name in RUN), None)
    if not meant:  # `learningrate`, `maxgradnorm`
        run_together = _run_together(known)
        meant = next(
            (run_together[n] for n in map(_joined, (word, last)) if n in run_together), None
        )
    if meant and section == "evaluation" and word not in RUN:  # it has the sampler's words, too
        near = difflib.get_close_matches(last, inside, n=1, cutoff=0.8)
        meant = inside.get(meant.rpartition(".")[2]) or (inside[near[0]] if near else meant)
    if meant:
        return meant
    near = difflib.get_close_matches(last, inside, n=1, cutoff=0.6)
    if near:
        return known[inside[near[0]]]
    near = difflib.get_close_matches(last, RUN, n=1, cutoff=0.85)
    if near:
        return RUN[near[0]]
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    if near:
        return known[near[0]]
    lasts = {key.rpartition(".")[2]: key for key in reversed(known)}
    near = difflib.get_close_matches(last, lasts, n=1, cutoff=0.7)
    return known[lasts[near[0]]] if near else None
