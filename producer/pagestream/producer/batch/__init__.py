"""Batches of OpenAI's API: files of requests, and what becomes of them, kept in Redis.

    files      files, in pieces
    lines      what a line of a batch's file may say
    batches    records of batches, and their lines' answers
    runner     answers every line of a batch
    due        what is to be done, and when

Nothing here knows HTTP or arq: the gateway takes files and batches in, `jobs` runs them.
"""
