"""Which mix groups of a global batch are whose, for any number of ranks up to the number of groups.

    4 groups, 3 ranks:   rank 0: groups 0, 3    rank 1: group 1    rank 2: group 2

Group g is rank g mod W's, so that the first ranks own one group more where W does not divide the groups. A step takes
as long as a rank with most of them.
"""

from rsbdali.distributed.world import World

LISTED = 8  # ranks whose groups are counted one by one in a message


def own_groups(groups: int, world: World) -> range:
    """The mix groups of one rank, of `groups` in all."""
    return range(world.rank, groups, world.size)


def most_groups(groups: int, ranks: int) -> int:
    """Groups of a rank that owns most of them: of rank 0, always."""
    return -(-groups // ranks)


def efficiency(groups: int, ranks: int) -> float:
    """Part of the ranks' time, 0 … 1, that goes into a step where groups take equal time; the rest is waiting."""
    return groups / (ranks * most_groups(groups, ranks))


def raised_groups(asked: int, groups: int, rows: int) -> str | None:
    """One line where more mix groups are mixed than the recipe asks for, since each rank owns one at least.

    Args:
        asked: the recipe's `mix_groups`.
        groups: mix groups of the global batch.
        rows: of the global batch.
    """
    if asked >= groups:
        return None
    return (
        f"mix_groups={asked} becomes {groups}, one a rank: rows are mixed in groups of {rows // groups}, not of "
        f"{rows // asked}, and a resume keeps that"
    )


def uneven_shares(groups: int, ranks: int) -> str | None:
    """One line on who owns how much and what that costs: "3 ranks own 2, 1, 1 of 4 groups: as fast as 2".

    Args:
        groups: mix groups of the global batch, at least as many as ranks.
        ranks: number of ranks W.

    Returns:
        None where all own equally many.
    """
    if groups % ranks == 0:
        return None
    most = most_groups(groups, ranks)
    equally_fast = most_groups(groups, most)  # the fewest ranks of which none owns more
    cost = f"{100 * efficiency(groups, ranks):.0f} % of the speed of equal shares"
    speed = f"as fast as {equally_fast}" if equally_fast < ranks else cost
    return f"{ranks} ranks own {_counts(groups, ranks)} of {groups} groups: {speed}"


def _counts(groups: int, ranks: int) -> str:
    least, more = divmod(groups, ranks)
    if ranks > LISTED:
        return f"{least + 1} each ({more} of them) and {least} each ({ranks - more})"
    return ", ".join([str(least + 1)] * more + [str(least)] * (ranks - more))
