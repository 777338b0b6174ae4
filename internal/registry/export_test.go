package registry

import "time"

// Hurry makes a client wait less, so that its tests don't.
func (c *Client) Hurry() {
	c.pace = pace{
		tries: 5, backoff: time.Millisecond, patience: time.Second, asked: 100 * time.Millisecond,
		answer: 300 * time.Millisecond, commit: time.Second, stall: 200 * time.Millisecond,
	}
}

var ParseChallenges = parseChallenges

const MaxManifest = maxManifest

// Patient makes it wait for a registry that is started again.
func (c *Client) Patient() {
	c.pace.backoff, c.pace.patience = 30*time.Millisecond, 2*time.Second
}
