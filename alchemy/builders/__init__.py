"""Structures out of descriptions: molecules, crystals, slabs, variants, random cells. One function per kind.

Every builder gets the item's settings (those of its block in `config_structures`) and a random generator, and
gives frames without labels. RDKit is optional, pymatgen is imported when a slab is asked for.
"""
