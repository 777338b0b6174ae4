// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>
#include "network.h"

static int __init network_init(void)
{
	pr_info("network: from " FROM "\n");
	return 0;
}

static void __exit network_exit(void)
{
}

module_init(network_init);
module_exit(network_exit);
MODULE_DESCRIPTION("Needs the network to be built");
MODULE_LICENSE("GPL");
