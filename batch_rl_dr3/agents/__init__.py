"""Offline agents: one Bellman loss each, everything else shared."""
