/* SPDX-License-Identifier: GPL-2.0 */
int exporter_answer(void);
