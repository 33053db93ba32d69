"""Where a policy's decisions matter, measured by drawing them anew, and which scorer finds the places."""
