package main

const finitModule = 273
