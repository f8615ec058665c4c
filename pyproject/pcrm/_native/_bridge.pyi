# The functions exported by package bridge. See their documentation there. Addresses are integers.

def bridge_RewardLoss(
    dtype: int,
    n: int,
    loss: int,
    gradChosen: int,
    gradRejected: int,
    chosen: int,
    rejected: int,
    delta: int,
    labelSmoothing: float,
    centerRewardsCoefficient: float,
    reduction: int,
    checkFinite: bool,
) -> bool: ...
def bridge_TokenLoss(
    dtype: int,
    rows: int,
    width: int,
    loss: int,
    gradChosen: int,
    gradRejected: int,
    chosen: int,
    rejected: int,
    chosenIDs: int,
    rejectedIDs: int,
    delta: int,
    padToken: int,
    reduction: int,
) -> bool: ...
def bridge_DPOLoss(
    dtype: int,
    n: int,
    loss: int,
    gradChosen: int,
    gradRejected: int,
    chosenRewards: int,
    rejectedRewards: int,
    policyChosen: int,
    policyRejected: int,
    referenceChosen: int,
    referenceRejected: int,
    delta: int,
    beta: float,
    labelSmoothing: float,
    reduction: int,
) -> bool: ...
def bridge_Deltas(dtype: int, n: int, dst: int, similarities: int, constraint: int) -> bool: ...
def bridge_WinProbabilities(dtype: int, n: int, dst: int, margins: int, deltas: int) -> bool: ...
def bridge_Fit(
    n: int, dst: int, similarities: int, targetAlike: float, targetUnlike: float, low: float, high: float
) -> bool: ...
def bridge_LengthRatios(
    n: int,
    dst: int,
    chosen: int,
    chosenOffsets: int,
    chosenLen: int,
    rejected: int,
    rejectedOffsets: int,
    rejectedLen: int,
    padToken: int,
) -> bool: ...
def bridge_RandomUniforms(
    n: int,
    dst: int,
    seed: int,
    chosen: int,
    chosenOffsets: int,
    chosenLen: int,
    rejected: int,
    rejectedOffsets: int,
    rejectedLen: int,
    padToken: int,
) -> bool: ...
def bridge_Cosines(dtype: int, n: int, dim: int, dst: int, a: int, b: int, angular: bool) -> bool: ...
def bridge_Lexicals(
    n: int,
    dst: int,
    chosen: int,
    chosenOffsets: int,
    chosenLen: int,
    rejected: int,
    rejectedOffsets: int,
    rejectedLen: int,
    words: bool,
) -> bool: ...
def bridge_SetNumThreads(n: int) -> bool: ...
def bridge_SetTier(name: str) -> bool: ...
def bridge_Tier() -> str: ...
def bridge_VerifyTrace(dir: str) -> str: ...
def bridge_NumThreads() -> int: ...
def bridge_PTXVersion() -> str: ...
def bridge_CUDAProbe() -> str: ...
def bridge_CUDAOpen(device: int) -> int: ...
def bridge_CUDARewardLoss(
    device: int,
    stream: int,
    dtype: int,
    rows: int,
    loss: int,
    gradChosen: int,
    gradRejected: int,
    partials: int,
    chosen: int,
    chosenStride: int,
    rejected: int,
    rejectedStride: int,
    delta: int,
    labelSmoothing: float,
    centerRewardsCoefficient: float,
    reduction: int,
) -> bool: ...
def bridge_CUDATokenLoss(
    device: int,
    stream: int,
    dtype: int,
    rows: int,
    width: int,
    loss: int,
    gradChosen: int,
    gradRejected: int,
    partials: int,
    chosen: int,
    chosenStride: int,
    chosenStep: int,
    rejected: int,
    rejectedStride: int,
    rejectedStep: int,
    chosenIDs: int,
    chosenIDSize: int,
    chosenIDStride: int,
    chosenIDStep: int,
    rejectedIDs: int,
    rejectedIDSize: int,
    rejectedIDStride: int,
    rejectedIDStep: int,
    delta: int,
    padToken: int,
    reduction: int,
) -> bool: ...
def bridge_CUDADPOLoss(
    device: int,
    stream: int,
    dtype: int,
    rows: int,
    loss: int,
    gradChosen: int,
    gradRejected: int,
    partials: int,
    chosenRewards: int,
    rejectedRewards: int,
    policyChosen: int,
    policyChosenStride: int,
    policyRejected: int,
    policyRejectedStride: int,
    referenceChosen: int,
    referenceChosenStride: int,
    referenceRejected: int,
    referenceRejectedStride: int,
    delta: int,
    beta: float,
    labelSmoothing: float,
    reduction: int,
) -> bool: ...
def bridge_CUDAScale(
    device: int,
    stream: int,
    dtype: int,
    count: int,
    width: int,
    chosen: int,
    rejected: int,
    gradChosen: int,
    gradRejected: int,
    incoming: int,
    incomingStride: int,
) -> bool: ...

# What bridge/stats.go exports.

def bridge_Spearman(n: int, x: int, y: int) -> float: ...
def bridge_KendallTauB(n: int, x: int, y: int) -> float: ...
def bridge_Quantiles(n: int, k: int, dst: int, x: int, p: int) -> bool: ...
def bridge_Histogram(n: int, bins: int, dst: int, x: int, low: float, high: float) -> bool: ...
def bridge_Reliability(n: int, dst: int, margins: int, delta: int) -> bool: ...
def bridge_CalibrationError(n: int, dst: int, margins: int) -> bool: ...
def bridge_Lowess(n: int, dst: int, x: int, y: int, frac: float, iterations: int, delta: float) -> bool: ...
def bridge_Pairs(n: int, margins: int, difference: int, delta: int) -> str: ...
def bridge_Rankings(
    prompts: int, points: int, spearman: int, kendall: int, scores: int, ratings: int, offsets: int
) -> str: ...
def bridge_Lengths(units: int, points: int, scores: int, lengths: int, offsets: int) -> str: ...

# What bridge/checkpoint.go exports.

def bridge_AverageNew(checkpoints: str, weights: int, n: int) -> str: ...
def bridge_AverageCreate(handle: int, folder: str) -> bool: ...
def bridge_AverageNext(handle: int) -> int: ...
def bridge_AverageClose(handle: int) -> str: ...
def bridge_CheckpointTensors(folder: str, name: str) -> str: ...
def bridge_DivideTensors(path: str, names: str, divisor: float) -> bool: ...
def bridge_PrefixArrange(
    rows: int,
    width: int,
    shape: int,
    order: int,
    shared: int,
    start: int,
    ids: int,
    lengths: int,
    minShared: int,
    budget: int,
) -> bool: ...
def bridge_PrefixPack(
    rows: int,
    width: int,
    packedRows: int,
    packedWidth: int,
    packed: int,
    positions: int,
    ends: int,
    gather: int,
    order: int,
    shared: int,
    start: int,
    ids: int,
    lengths: int,
) -> bool: ...
def bridge_Calibrate(
    n: int, dst: int, scores: int, feature: int, method: str, alpha: float, frac: float, iterations: int, delta: float
) -> bool: ...
def bridge_Calibrated(n: int, margins: int, calibrated: int) -> str: ...
def bridge_BestOfN(pools: int, points: int, k: int, scores: int, gold: int, offsets: int, counts: int) -> str: ...
def bridge_SoftmaxPolicy(
    pools: int, points: int, k: int, scores: int, gold: int, offsets: int, coefficients: int
) -> str: ...
def bridge_Reference(pools: int, points: int, scores: int, gold: int, offsets: int) -> str: ...
