package main

const finitModule = 313
