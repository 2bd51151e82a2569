"""Transition states: paths, saddles, their checks, and the loop of labels around them.

    surface     a committee or ASE calculators as one potential, many copies side by side
    path, neb   IDPP and the climbing-image band       dimer, with_sella   up to the saddle
    modes, irc  Hessians, modes, both ways down         saddles             what counts as one
    bonds       graphs, and reactions found in MD       watch               when a search stops
    search      one reaction                            explorer, refine    many; with labels
    correction  a committee put right at its labels     repulsion           where to begin without one
    labels      what a labeler said                     ends                relaxed with labels: barriers
"""

from .bonds import bond_changes, bonds, isomorphic
from .correction import Corrected
from .ends import End
from .explorer import TransitionStates, summary
from .labels import Label
from .reactions import Reaction, checked, reactions_from_frames
from .refine import Refinement, refine_saddle
from .saddles import Saddle, verified
from .search import SearchOptions, SearchResult, search
from .surface import Surface
from .watch import Limits, Watch

__all__ = [
    "Corrected",
    "End",
    "Label",
    "Limits",
    "Reaction",
    "Refinement",
    "Saddle",
    "SearchOptions",
    "SearchResult",
    "Surface",
    "TransitionStates",
    "Watch",
    "bond_changes",
    "bonds",
    "checked",
    "isomorphic",
    "reactions_from_frames",
    "refine_saddle",
    "search",
    "summary",
    "verified",
]
