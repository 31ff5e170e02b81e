-- Put behind each script. A reader gets one message, however many of its jobs have events.
for reader, letters in pairs(mail) do call(a.publish, 'aios:mail:' .. reader, table.concat(letters)) end
