// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>

static int __init noconf_init(void)
{
	pr_info("noconf: loaded\n");
	return 0;
}

static void __exit noconf_exit(void)
{
}

module_init(noconf_init);
module_exit(noconf_exit);
MODULE_DESCRIPTION("Has no dkms.conf");
MODULE_LICENSE("GPL");
