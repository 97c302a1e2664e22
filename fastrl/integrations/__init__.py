"""The replay inside other libraries' agents: one package for each library, imported only by who asks for it."""
