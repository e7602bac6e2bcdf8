"""The compiled CPU kernels: raw addresses in, None or a fault out. Use `fastguide.ops` instead."""

Fault = tuple[int, int, int, int]
Strides2 = tuple[int, ...]
Strides3 = tuple[int, ...]

def cpu_level() -> str: ...
def supported_levels() -> list[str]: ...
def environment(name: str) -> str: ...
def philox_uniform(
    seed: int,
    chains: int,  # [N] int64
    first_candidate: int,  # [N] int64, or 0
    c3: int,
    num_chains: int,
    num_candidates: int,
    num_elements: int,
    out: int,  # [N, K, E] float64
    num_threads: int,
    /,
) -> Fault | None: ...
def philox_normal(
    seed: int,
    chains: int,  # [N] int64
    first_candidate: int,  # [N] int64, or 0
    c3: int,
    num_chains: int,
    num_candidates: int,
    num_elements: int,
    is_double: bool,
    out: int,  # [N, K, E] float32|float64
    num_threads: int,
    /,
) -> Fault | None: ...
def masked_propose(
    logits: int,  # [U, L, V] or [S, V] float32|float64
    is_double: bool,
    logits_strides: Strides3,
    num_logits: int,
    vocab_size: int,
    index: int,  # [N] int64, or 0
    per_site: bool,  # index is [N, L]
    temperature: float,
    x: int,  # [N, L] int64
    x_strides: Strides2,
    num_rows: int,
    length: int,
    mask_token: int,
    keys: int,  # [N, 2] int64
    rho: float,
    seed: int,
    chains: int,  # [N] int64
    first_candidate: int,  # [N] int64, or 0
    step: int,
    num_candidates: int,
    out_tokens: int,  # [N, K, L] int64
    out_keys: int,  # [N, K, 2] int64
    out_changed: int,  # [N, K] int32
    num_threads: int,
    /,
) -> Fault | None: ...
def masked_posterior(
    logits: int,  # [U, L, V] or [S, V] float32|float64
    is_double: bool,
    logits_strides: Strides3,
    num_logits: int,
    vocab_size: int,
    index: int,  # [R] int64, or 0
    per_site: bool,  # index is [R, L]
    temperature: float,
    x: int,  # [R, L] int64
    x_strides: Strides2,
    num_rows: int,
    length: int,
    mask_token: int,
    num_samples: int,
    keys: int,  # [R, 2] int64, or 0
    seed: int,
    purpose: int,
    out: int,  # [R, L] or [R, S, L] int64
    num_threads: int,
    /,
) -> Fault | None: ...
def masked_keys(
    x: int,  # [R, L] int64
    x_strides: Strides2,
    num_rows: int,
    length: int,
    out: int,  # [R, 2] int64
    num_threads: int,
    /,
) -> None: ...
def unique_rows(
    rows: int,  # [R] rows of row_bytes
    row_stride_bytes: int,
    row_bytes: int,
    num_rows: int,
    keys: int,  # [R, 2] int64
    first: int,  # [R] int64
    inverse: int,  # [R] int64
    count: int,  # [1] int64
    /,
) -> None: ...
def gaussian_propose(
    is_double: bool,
    x: tuple[int, int],  # [N, D]: address, row stride
    output: tuple[int, int],  # [U, D]
    num_outputs: int,
    shift: tuple[int, int],  # [N, D]; address 0: absent
    a: float,
    b: float,
    s: float,
    seed: int,
    chains: int,  # [N] int64
    first_candidate: int,  # [N] int64, or 0
    c3: int,
    index: int,  # [N] int64, or 0
    num_chains: int,
    num_candidates: int,
    num_elements: int,
    out: int,  # [N, K, D]
    out_log_ratio: int,  # [N, K] float64, or 0
    num_threads: int,
    /,
) -> Fault | None: ...
def select(
    values: tuple[int, int, int, bool],  # [N, K]: address, strides, is_double
    log_ratio: tuple[int, int, int, bool],  # [N, K]; address 0: absent
    num_rows: int,
    num_candidates: int,
    alpha: float,
    seed: int,
    chains: int,  # [N] int64
    particles: int,  # [N] int64, or 0
    c3: int,
    gather: list[tuple[int, int, int, int, int, int, int]],
    out_index: int,  # [N] int64
    out_lme: int,  # [N] float64
    out_ess: int,  # [N] float64
    num_threads: int,
    /,
) -> Fault | None: ...
def resample(
    log_w: tuple[int, int, int, bool],  # [G, N]: address, strides, is_double
    num_groups: int,
    num_particles: int,
    scheme: int,
    ess_threshold: float,  # share of N; negative: every group resamples
    seed: int,
    chains: int,  # [G] int64
    c3: int,
    gather: list[tuple[int, int, int, int, int, int, int]],
    out_ancestors: int,  # [G, N] int64
    out_log_z: int,  # [G] float64
    out_resampled: int,  # [G] bool
    out_ess: int,  # [G] float64
    num_threads: int,
    /,
) -> Fault | None: ...
def soft_value(
    values: int,  # [R, S] float32|float64
    is_double: bool,
    strides: Strides2,
    num_rows: int,
    num_samples: int,
    kind: int,
    alpha: float,
    tau: float,
    out: int,  # [R]
    num_threads: int,
    /,
) -> None: ...
