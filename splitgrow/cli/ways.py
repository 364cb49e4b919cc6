"""The two ways to grow, in a sentence each, as help texts, reports and `inspect` tell them."""

LEARNING = (
    "Growing to learn (freeze=False): everything trains on, old units and new ones, so that a small"
    " network becomes a large one."
)
KEEPING = (
    "Growing without forgetting (freeze=True, the default of expand): all that exists is frozen,"
    " only new units learn, and the old network can still be run as it was."
)
