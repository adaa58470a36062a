"""`pagestream bench`: what the engine and the whole path give, and what each idea in them buys."""
