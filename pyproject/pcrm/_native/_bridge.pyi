# What bridge/bridge.go exports; addresses are integers, see there.

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
def bridge_Deltas(
    dtype: int,
    n: int,
    dst: int,
    similarities: int,
    beta1: float,
    beta2: float,
    beta3: float,
    floor: float,
    ceiling: float,
) -> bool: ...
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
