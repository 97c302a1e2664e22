"""The replay inside other libraries' agents: one package per library. Nothing else in `fastrl` imports them."""
