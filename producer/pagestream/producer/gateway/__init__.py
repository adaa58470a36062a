"""The gateway: OpenAI's HTTP interface to the queues. It holds no model and no state.

    app       the application: what is started, and which routers it has
    chat, completions, responses, models, streams, health     one area of the interface each
    asking    what a request becomes: a job, with what headers and body say of it
    bodies    the requests' schemas
    completion_form, response_form    what answers look like
    events    server-sent events of one reply stream
    dashboard the page for operators at `/dashboard`, and what it reads; `static/` is the page
    waiting   an answer that is given up when the client hangs up
    queues    which queue a model, or a job, is on
    owned     a gateway that ends with another process: that of `pagestream up`
    api_keys  API keys and their tenants
    failures  errors as OpenAI's clients expect them

Everything is read from and written to Redis, so any number of gateways serve the same requests, and
what one began another goes on with.
"""
