"""Games played in lanes under the published protocol."""
