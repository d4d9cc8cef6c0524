"""Small closed worlds with a known gold reward, where claims are tested."""
