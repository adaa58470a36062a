"""Webhooks: somebody is told by HTTP that a job or a batch has ended.

urls       what a webhook's URL may be
events     what is told
store      what is still to be told, and what was given up, in Redis
collector  takes the ends of jobs from their queues
signing    Standard Webhooks' signatures
addresses  where a request may go to
sender     sends it, again and again
"""
