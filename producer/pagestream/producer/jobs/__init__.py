"""What goes on around the GPU, run by arq: batches, and whatever else is due some time.

The queues do without it: jobs are accepted, run and recovered while no process of this kind is up.

    process    the arq worker, and what it is told to do
    answering  a line of a batch, answered by the gateway's own application
    settings   what a jobs process can be told
    cli        `pagestream jobs`
"""
