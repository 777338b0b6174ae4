// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>

static int __init notbash_init(void)
{
	pr_info("notbash: loaded\n");
	return 0;
}

static void __exit notbash_exit(void)
{
}

module_init(notbash_init);
module_exit(notbash_exit);
MODULE_DESCRIPTION("Its dkms.conf is not bash");
MODULE_LICENSE("GPL");
