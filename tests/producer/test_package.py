"""What importing the client costs, and what it gives."""

import json
import subprocess
import sys

import pagestream.producer


def test_importing_the_client_brings_nothing_heavy():
    code = "import sys, json, pagestream.producer; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    heavy = {"torch", "triton", "transformers", "numpy", "pydantic", "typer", "rich", "click"}
    assert {"redis", "msgspec"} <= loaded
    assert not loaded & heavy


def test_the_public_names_are_those_listed():
    listed = pagestream.producer.__all__
    assert listed == sorted(listed)
    modules = type(sys)
    public = {
        name
        for name, value in vars(pagestream.producer).items()
        if not name.startswith("_") and not isinstance(value, modules)
    }
    assert public == set(listed)
    assert all(pagestream.producer.__dict__[name].__doc__ for name in listed)
