// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>
#include "marker.h"

static int __init hostfile_init(void)
{
	pr_info("hostfile: " MARKER "\n");
	return 0;
}

static void __exit hostfile_exit(void)
{
}

module_init(hostfile_init);
module_exit(hostfile_exit);
MODULE_DESCRIPTION("Carries a file of the machine that built it");
MODULE_LICENSE("GPL");
MODULE_INFO(marker, MARKER);
