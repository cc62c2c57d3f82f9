"""What do we believe about each prompt?"""
