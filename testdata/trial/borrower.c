// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>

int lender_answer(void);

static int __init borrower_init(void)
{
	return lender_answer() == 42 ? 0 : -EINVAL;
}

static void __exit borrower_exit(void)
{
}

module_init(borrower_init);
module_exit(borrower_exit);
MODULE_DESCRIPTION("Uses the symbol of the lender: can't be loaded before it");
MODULE_LICENSE("GPL");
