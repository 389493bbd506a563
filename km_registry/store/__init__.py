"""What the facade is made of: each module is one part of the registry's behaviour."""
