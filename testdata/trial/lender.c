// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>

int lender_answer(void);

int lender_answer(void)
{
	return 42;
}
EXPORT_SYMBOL_GPL(lender_answer);

static int __init lender_init(void)
{
	return 0;
}

static void __exit lender_exit(void)
{
}

module_init(lender_init);
module_exit(lender_exit);
MODULE_DESCRIPTION("Exports a symbol");
MODULE_LICENSE("GPL");
