"""goodnet: finds backdoors in image classifiers, shows the trigger, repairs the net, and proves it."""
