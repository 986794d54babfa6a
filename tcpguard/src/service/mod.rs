//! What a protected port does with its connections: relays them to a backend. It sees streams, never packets.
