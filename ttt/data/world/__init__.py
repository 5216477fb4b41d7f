"""The demo's world: captioned scenes of emoji and coloured shapes. Independent of every model and of the network."""
