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
