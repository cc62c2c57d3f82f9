"""What is one more rollout of a prompt worth?"""
