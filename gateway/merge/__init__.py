"""Asked: may this small call share one upstream call with others, and whose answer is whose?"""
