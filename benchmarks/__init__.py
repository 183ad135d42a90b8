"""How good the factory is at real-style bugs, and a peer to compare with. Not part of the installed package."""
