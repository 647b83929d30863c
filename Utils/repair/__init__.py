"""How is a backdoor taken out again, so that everything else stays?"""
